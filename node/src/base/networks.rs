//! The addresses that a webhook may reach.
//!
//! A webhook URL comes from a stranger, so its text decides nothing. The check takes the address that is about to be
//! dialled, in canonical form: IPv4 inside IPv6 is unwrapped wherever the operating system would unwrap it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;

const fn v4(a: u8, b: u8, c: u8, bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), bits)
}

const fn v6(head: [u16; 3], bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(head[0], head[1], head[2], 0, 0, 0, 0, 0), bits)
}

const LOOPBACK_V4: Ipv4Net = v4(127, 0, 0, 8);
const LOOPBACK_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128);

/// Private networks: closed unless `webhooks.allow_networks` opens them.
const PRIVATE_V4: [Ipv4Net; 6] = [
    LOOPBACK_V4,
    v4(10, 0, 0, 8),
    v4(100, 64, 0, 10), // carrier-grade NAT
    v4(172, 16, 0, 12),
    v4(192, 168, 0, 16),
    v4(198, 18, 0, 15), // benchmarks; also used in laboratories
];
const PRIVATE_V6: [Ipv6Net; 2] = [LOOPBACK_V6, v6([0xfc00, 0, 0], 7)];

/// Networks that no setting opens: unassigned ones, and ways into this machine or its neighbours.
const NEVER_V4: [Ipv4Net; 9] = [
    v4(0, 0, 0, 8),      // "this host": Linux dials itself
    v4(169, 254, 0, 16), // link-local, where clouds keep their metadata
    v4(192, 0, 0, 24),
    v4(192, 0, 2, 24),   // documentation, like 198.51.100.0/24 and 203.0.113.0/24
    v4(192, 88, 99, 24), // relays of 6to4
    v4(198, 51, 100, 24),
    v4(203, 0, 113, 24),
    v4(224, 0, 0, 4), // multicast
    v4(240, 0, 0, 4), // reserved, broadcast
];
const NEVER_V6: [Ipv6Net; 10] = [
    // Everything outside global unicast (2000::/3): the unspecified address, IPv4 in its compatible and translated
    // forms, NAT64 (64:ff9b::/96 and 64:ff9b:1::/48), the discard prefix, 5f00::/16, link-local, site-local and
    // multicast.
    v6([0, 0, 0], 3),
    v6([0x4000, 0, 0], 2),
    v6([0x8000, 0, 0], 1),
    v6([0x2001, 0, 0], 32),     // Teredo: embeds an IPv4 address
    v6([0x2001, 2, 0], 48),     // benchmarks
    v6([0x2001, 0x10, 0], 28),  // ORCHID: identifiers that are not routed
    v6([0x2001, 0x20, 0], 28),  // ORCHIDv2
    v6([0x2001, 0xdb8, 0], 32), // documentation
    v6([0x2002, 0, 0], 16),     // 6to4: embeds an IPv4 address
    v6([0x3fff, 0, 0], 20),     // documentation
];

/// How a webhook may use an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Open to every webhook.
    Public,
    /// In a private network or on this machine: open only if `webhooks.allow_networks` says so.
    Private,
    /// Closed, whatever the configuration says.
    Never,
}

/// The kind of `address`, which must be canonical: see [`IpAddr::to_canonical`].
pub fn kind(address: IpAddr) -> Kind {
    let (private, never) = match address {
        IpAddr::V4(a) => (
            PRIVATE_V4.iter().any(|net| net.contains(&a)),
            NEVER_V4.iter().any(|net| net.contains(&a)),
        ),
        IpAddr::V6(a) => (
            PRIVATE_V6.iter().any(|net| net.contains(&a)),
            NEVER_V6.iter().any(|net| net.contains(&a)),
        ),
    };
    match (private, never) {
        (true, _) => Kind::Private,
        (false, true) => Kind::Never,
        (false, false) => Kind::Public,
    }
}

/// An item of `webhooks.allow_networks`: a range of addresses, `address/prefix length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network(IpNet);

impl Network {
    /// Whether the network contains the canonical address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Whether the network overlaps this machine's loopback addresses.
    pub fn opens_loopback(&self) -> bool {
        meet(&self.0, &LOOPBACK_V4.into()) || meet(&self.0, &LOOPBACK_V6.into())
    }

    /// Whether the network overlaps a private network other than loopback.
    pub fn opens_inner(&self) -> bool {
        let v4 = PRIVATE_V4.iter().filter(|net| **net != LOOPBACK_V4);
        let v6 = PRIVATE_V6.iter().filter(|net| **net != LOOPBACK_V6);
        v4.map(|net| IpNet::V4(*net))
            .chain(v6.map(|net| IpNet::V6(*net)))
            .any(|net| meet(&self.0, &net))
    }
}

/// Whether two networks overlap: one must contain the other.
fn meet(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let net: IpNet = text
            .parse()
            .map_err(|_| format!("{text:?} is not a network such as 127.0.0.0/8"))?;
        if net.trunc() != net {
            return Err(format!(
                "{text:?} has bits after its prefix; the network is {}",
                net.trunc()
            ));
        }
        let first = net.network();
        if first.to_canonical() != first {
            return Err(format!("{text:?} is IPv4 within IPv6; write the IPv4 network"));
        }
        let only_never = match net {
            IpNet::V4(net) => NEVER_V4.iter().any(|never| never.contains(&net)),
            IpNet::V6(net) => {
                NEVER_V6.iter().any(|never| never.contains(&net))
                    && !PRIVATE_V6
                        .iter()
                        .any(|private| meet(&IpNet::V6(*private), &IpNet::V6(net)))
            }
        };
        if only_never {
            return Err(format!("{text:?} is never opened to webhooks"));
        }
        Ok(Network(net))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The published special-purpose ranges as text, read with masks: an oracle that shares no code with the tables
    /// above.
    const FORBIDDEN: &str = "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
        192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
        255.255.255.255/32 ::/128 ::1/128 ::/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 2001::/32 2001:10::/28 2001:20::/28
        2001:db8::/32 2002::/16 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8";
    const OPENED_ON_REQUEST: &str =
        "10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 172.16.0.0/12 192.168.0.0/16 198.18.0.0/15 ::1/128 fc00::/7";

    /// Ranges as numbers: whether it is IPv4, the first address, the prefix length.
    fn ranges(table: &str) -> Vec<(bool, u128, u32)> {
        let read = |text: &str| {
            let (address, bits) = text.split_once('/').unwrap();
            let (v4, first) = number(address.parse().unwrap());
            (v4, first, bits.parse().unwrap())
        };
        table.split_whitespace().map(read).collect()
    }

    fn number(address: IpAddr) -> (bool, u128) {
        match address {
            IpAddr::V4(a) => (true, u128::from(u32::from(a))),
            IpAddr::V6(a) => (false, u128::from(a)),
        }
    }

    fn within(table: &str, address: IpAddr) -> bool {
        let (is_v4, value) = number(address);
        let width = if is_v4 { 32 } else { 128 };
        ranges(table)
            .into_iter()
            .any(|(v4, first, bits)| v4 == is_v4 && (bits == 0 || (value ^ first) >> (width - bits) == 0))
    }

    /// Random addresses, with a bias towards the edges of the ranges.
    fn address() -> impl Strategy<Value = IpAddr> {
        let edges = prop::sample::select(ranges(FORBIDDEN)).prop_flat_map(|(v4, first, bits)| {
            let width = if v4 { 32 } else { 128 };
            let last = first | (u128::MAX.checked_shl(width - bits).map_or(u128::MAX, |m| !m));
            (any::<u128>(), -2i128..=2, any::<bool>()).prop_map(move |(inside, step, at_end)| {
                let edge = if at_end { last } else { first };
                let value = if step == 0 {
                    first | (inside & (last ^ first))
                } else {
                    edge.wrapping_add_signed(step)
                };
                if v4 {
                    IpAddr::V4(Ipv4Addr::from(value as u32))
                } else {
                    IpAddr::V6(Ipv6Addr::from(value))
                }
            })
        });
        prop_oneof![
            any::<u32>().prop_map(|a| IpAddr::V4(a.into())),
            any::<u128>().prop_map(|a| IpAddr::V6(a.into())),
            edges,
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn the_published_ranges_are_closed(address in address()) {
            let address = address.to_canonical();
            let global = !matches!(address, IpAddr::V6(a) if a.segments()[0] >> 13 != 1);
            let benchmark = within("2001:2::/48", address);
            let closed = within(FORBIDDEN, address) || !global || benchmark;
            prop_assert_eq!(kind(address) != Kind::Public, closed, "{}", address);
            prop_assert_eq!(kind(address) == Kind::Private, within(OPENED_ON_REQUEST, address), "{}", address);
        }

        #[test]
        fn ipv4_in_any_form_of_ipv6_is_not_a_way_around(a in any::<u32>()) {
            let v4 = Ipv4Addr::from(a);
            let mapped = IpAddr::V6(v4.to_ipv6_mapped());
            prop_assert_eq!(kind(mapped.to_canonical()), kind(IpAddr::V4(v4)));
            let low = u128::from(a);
            for prefix in [0u128, 0xffff << 48, 0x64_ff9b << 96, 0x64_ff9b_0001 << 80] {
                let wrapped = IpAddr::V6(Ipv6Addr::from(prefix | low));
                let is_loopback = wrapped == IpAddr::V6(Ipv6Addr::LOCALHOST);
                prop_assert!(kind(wrapped) == Kind::Never || is_loopback, "{}", wrapped);
            }
            for prefix in [0x2002u128 << 112 | low << 80, 0x2001u128 << 112 | low] {
                prop_assert_eq!(kind(IpAddr::V6(Ipv6Addr::from(prefix))), Kind::Never);
            }
        }
    }

    #[test]
    fn an_allow_list_opens_what_it_can_open() {
        let net = |text: &str| Network::try_from(text.to_owned());
        for good in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "::/0",
            "fc00::/7",
            "::1/128",
            "127.0.0.1/32",
            "fd12:3456::/32",
            "8.8.8.0/24",
        ] {
            assert_eq!(net(good).unwrap().to_string(), good);
        }
        for (bad, why) in [
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("10.0.0.0", "not a network"),
            ("10.0.0.0/33", "not a network"),
            ("host/8", "not a network"),
            ("::ffff:10.0.0.0/104", "IPv4 within IPv6"),
            ("169.254.0.0/16", "never"),
            ("169.254.169.254/32", "never"),
            ("0.0.0.0/32", "never"),
            ("224.0.0.0/4", "never"),
            ("fe80::/10", "never"),
            ("64:ff9b::/96", "never"),
            ("::/128", "never"),
        ] {
            let error = net(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(net("127.0.0.0/8").unwrap().opens_loopback() && !net("127.0.0.0/8").unwrap().opens_inner());
        assert!(!net("10.1.0.0/16").unwrap().opens_loopback() && net("10.1.0.0/16").unwrap().opens_inner());
        assert!(net("::/0").unwrap().opens_loopback() && net("::/0").unwrap().opens_inner());
    }
}
