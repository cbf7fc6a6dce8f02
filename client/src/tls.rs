//! TLS settings, the same for HTTP and for WebSockets: rustls with ring, and the certificate authorities of the machine.
//! For a private authority set `SSL_CERT_FILE` or `SSL_CERT_DIR`.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use crate::Error;

/// Settings for these URLs. The authorities are read only if one of the URLs needs TLS: reading takes milliseconds, and a
/// machine without authorities can still use plain HTTP.
pub(crate) fn config_for(urls: &[String]) -> Result<ClientConfig, Error> {
    let encrypted = |url: &String| url.starts_with("https:") || url.starts_with("wss:");
    let roots = if urls.iter().any(encrypted) {
        system_roots()?
    } else {
        RootCertStore::empty()
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Invalid(format!("TLS cannot be set up: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn system_roots() -> Result<RootCertStore, Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = found.errors.first().map(|e| format!(" ({e})")).unwrap_or_default();
        return Err(Error::Invalid(format!(
            "no certificate authority found on this machine{reason}; install ca-certificates or set SSL_CERT_FILE"
        )));
    }
    Ok(roots)
}
