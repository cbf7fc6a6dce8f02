//! Device logins. An expired login counts as absent even before the sweep removes it.

use agentpost_proto::id;
use agentpost_proto::record::Login;

use crate::core::keys;
use crate::core::kv::{Fatal, Lookup};
use crate::core::view::load;

/// The login with this user code. The code may be any text that a person typed; one that is not well-formed finds
/// nothing.
pub fn by_user_code(kv: &(impl Lookup + ?Sized), user_code: &str, cluster_ms: u64) -> Result<Option<Login>, Fatal> {
    if id::validate_user_code(user_code).is_err() {
        return Ok(None);
    }
    let login: Option<Login> = load(kv, &keys::login(user_code))?;
    Ok(login.filter(|login| cluster_ms < login.expires_ct_ms))
}

/// The login of the device whose code has this keyed hash.
pub fn by_device(kv: &(impl Lookup + ?Sized), device_hash: &[u8], cluster_ms: u64) -> Result<Option<Login>, Fatal> {
    let Some(user_code) = kv.get(&keys::login_device(device_hash))? else {
        return Ok(None);
    };
    let user_code = std::str::from_utf8(&user_code).map_err(|e| Fatal::Invariant(format!("a user code: {e}")))?;
    by_user_code(kv, user_code, cluster_ms)
}
