//! Which URLs may be registered as webhooks.

use std::net::Ipv4Addr;

use agentpost_node::base::networks::{Kind, kind};
use proptest::prelude::*;

use super::stage::{LOOPBACK, Stage};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    Registration,
    Dialling,
}

pub struct Row {
    pub at: Where,
    /// Whether the URL is refused even when loopback and plain HTTP are allowed.
    pub open: bool,
    pub text: String,
}

/// The rows of `hostile.txt`.
pub fn table() -> Vec<Row> {
    let lines = include_str!("hostile.txt").lines();
    let row = |line: &str| {
        let (at, rest) = line.split_once(' ').unwrap();
        let at = match at {
            "registration" => Where::Registration,
            "dialling" => Where::Dialling,
            other => panic!("{other}"),
        };
        let open = rest.strip_prefix("open ");
        Row {
            at,
            open: open.is_some(),
            text: open.unwrap_or(rest).to_owned(),
        }
    };
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(row)
        .collect()
}

#[tokio::test]
async fn no_hostile_url_of_the_table_is_registered_or_called() {
    let (closed, open) = (Stage::new(""), Stage::new(LOOPBACK));
    let table = table();
    assert!(table.len() >= 120, "{} rows", table.len());
    for row in table.iter().filter(|row| row.at == Where::Registration) {
        let mut stages = vec![&closed];
        stages.extend(row.open.then_some(&open));
        for stage in stages {
            assert!(stage.egress.check_url(&row.text).is_err(), "{}", row.text);
            assert_eq!(stage.call(&row.text).await.error, "refused", "{}", row.text);
            assert_eq!(stage.names.asked(), 0, "{}", row.text);
        }
    }
}

#[test]
fn ordinary_urls_are_registered() {
    let longest_host = format!("{}.{}", ["a".repeat(63).as_str(); 3].join("."), "b".repeat(61));
    assert_eq!(longest_host.len(), 253);
    let stage = Stage::new("");
    for url in [
        "https://example.com",
        "https://example.com/",
        "HTTPS://H.example/a?b=%7E",
        "https://example.com:443/",
        "https://example.com:8443/hook?x=1&y=[2]",
        "https://a-b_c.example.com./",
        "https://bücher.example/ä",
        "https://localhost.example.com/",
        "https://mylocal/../".replace("mylocal", "my.locals").as_str(),
        "https://93.184.216.34/",
        "https://[2606:2800:220:1:248:1893:25c8:1946]:8443/",
        "https://example.com/user@host:pass",
        "https://example.com?x",
        &format!("https://{longest_host}/"),
    ] {
        assert_eq!(stage.egress.check_url(url), Ok(()), "{url}");
    }
    let of_length = |length: usize| format!("https://example.com/{}", "p".repeat(length - 20));
    assert_eq!(stage.egress.check_url(&of_length(2048)), Ok(()));
    for url in [
        of_length(2049),
        format!("https://x{longest_host}/"),
        format!("https://{}.example.com/", "a".repeat(64)),
    ] {
        assert!(stage.egress.check_url(&url).is_err(), "{url}");
    }
}

#[test]
fn settings_open_http_and_networks() {
    let check = |settings: &str, url: &str| Stage::new(settings).egress.check_url(url).is_ok();
    for url in [
        "http://127.0.0.1:9000/x",
        "http://localhost:9000/x",
        "http://a.localhost/",
        "http://127.9.9.9/",
    ] {
        assert!(check(LOOPBACK, url), "{url}");
        assert!(!check("allow_http = true", url), "{url}");
        assert!(!check("allow_networks = [\"127.0.0.0/8\"]", url), "{url}");
    }
    assert!(check("allow_http = true", "http://example.com/"));
    assert!(check("allow_http = true", "http://example.com:8080/"));
    assert!(!check("allow_http = true", "http://example.com:81/"));
    assert!(!check("", "https://example.com:80/"));
    // Allowing a private network also allows the names of private networks.
    let inner = "allow_networks = [\"10.1.0.0/16\", \"fd00:1::/32\"]";
    for url in [
        "https://10.1.2.3/",
        "https://[fd00:1::5]/",
        "https://agent-1/",
        "https://a.internal/",
        "https://b.local/",
    ] {
        assert!(check(inner, url), "{url}");
    }
    for url in [
        "https://10.2.0.1/",
        "https://[fd00:2::5]/",
        "https://localhost/",
        "https://127.0.0.1/",
    ] {
        assert!(!check(inner, url), "{url}");
    }
    // No setting allows these networks.
    let all = "allow_http = true\nallow_networks = [\"0.0.0.0/0\", \"::/0\"]";
    for url in [
        "http://0.0.0.0/",
        "http://169.254.169.254/",
        "http://[::]/",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
    ] {
        assert!(!check(all, url), "{url}");
    }
    assert!(check(all, "http://[::1]/") && check(all, "http://192.168.1.1/"));
}

/// All spellings of one address that a URL parser understands.
fn notations(address: Ipv4Addr) -> Vec<String> {
    let number = u32::from(address);
    let [a, b, c, d] = address.octets();
    let six = address.to_ipv6_mapped().segments();
    vec![
        format!("{a}.{b}.{c}.{d}"),
        format!("{a}.{b}.{c}.{d}."),
        format!("{number}"),
        format!("{number:#x}"),
        format!("0{number:o}"),
        format!("{a:#x}.{b:#o}.{c}.{d}").replace("0o", "0"),
        format!("{a}.{}", number & 0xff_ffff),
        format!("{a}.{b}.{}", number & 0xffff),
        format!("{a}%2E{b}.{c}.{d}"),
        format!("{a}。{b}．{c}.{d}"),
        format!("[::ffff:{address}]"),
        format!("[::FFFF:{:x}:{:x}]", six[6], six[7]),
    ]
}

proptest! {
    #[test]
    fn how_an_address_is_written_changes_nothing(
        number in prop_oneof![any::<u32>(), prop::sample::select(vec![0x7f00_0001u32, 0x0a00_0000, 0xa9fe_a9fe, 0xc0a8_0101]), (0x7f00_0000u32..=0x7fff_ffff)],
    ) {
        let address = Ipv4Addr::from(number);
        let stage = Stage::new("");
        for host in notations(address) {
            let url = format!("https://{host}/hook");
            let registered = stage.egress.check_url(&url);
            prop_assert_eq!(registered.is_ok(), kind(address.into()) == Kind::Public, "{} {:?}", url, registered);
        }
    }

    #[test]
    fn no_text_makes_the_check_fail_in_another_way(text in "(https?://)?[a-z0-9.:\\[\\]@%#?/\\\\ -]{0,40}") {
        let stage = Stage::new(LOOPBACK);
        if stage.egress.check_url(&text).is_ok() {
            let url = url::Url::parse(&text).unwrap();
            prop_assert!(url.username().is_empty() && url.password().is_none() && url.fragment().is_none());
            prop_assert!(url.host_str().is_some_and(|host| !host.is_empty()));
        }
    }
}
