//! What libpq looks up before it connects.

use std::net::IpAddr;

/// The first host that a server's options `host` and `hostaddr` name, when it is a name that has to be looked up: no address, no
/// directory of sockets, and without an address of its own. Further hosts are looked up only when nobody answers at the first.
pub fn to_look_up<'a>(host: &'a str, hostaddr: &str) -> Option<&'a str> {
    let first = host.split(',').next().unwrap_or_default();
    let has_address = hostaddr.split(',').next().is_some_and(|address| !address.is_empty());
    let is_place = first.is_empty() || first.starts_with(['/', '@']) || first.parse::<IpAddr>().is_ok();
    (!has_address && !is_place).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::to_look_up;

    #[test]
    fn names_are_told_from_addresses_and_sockets() {
        for (host, hostaddr, expected) in [
            ("db.example", "", Some("db.example")),
            ("db.example,other.example", "", Some("db.example")),
            ("db.example", "10.0.0.1", None),
            ("db.example,other.example", ",10.0.0.1", Some("db.example")),
            ("10.0.0.1,db.example", "", None),
            ("::1", "", None),
            ("/var/run/postgresql", "", None),
            ("@abstract", "", None),
            ("", "", None),
            ("", "10.0.0.1", None),
        ] {
            assert_eq!(to_look_up(host, hostaddr), expected, "{host:?} {hostaddr:?}");
        }
    }
}
