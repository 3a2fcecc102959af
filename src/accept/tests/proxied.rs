//! Peers that speak for others by a PROXY line, and who is turned away.

use super::*;

fn listed() -> Gate {
    Gate { trusted: ArcSwap::from_pointee(TrustedProxies::new(["loopback", "unix"]).unwrap()), ..gate() }
}

#[tokio::test]
async fn a_listed_peer_speaks_for_its_client_and_no_byte_behind_the_line_is_lost() {
    let site = start(listed(), PROXIED);
    for cut in [0, 1, 6, 20, 43, 44, 45, 47] {
        let mut balancer = site.connect().await;
        balancer.set_nodelay(true).unwrap();
        let (first, rest) = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\nrest".split_at(cut);
        balancer.write_all(first).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        balancer.write_all(rest).await.unwrap();
        assert_eq!(line(&mut balancer).await, "192.0.2.7 127.0.0.1 443 //- false\n", "cut at {cut}");
        let mut echo = [0; 4];
        soon(balancer.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, b"rest");
    }
    let mut balancer = site.connect().await;
    balancer.write_all(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x09\x01\x01\x01\x01\x00\x50\x01\xbb").await.unwrap();
    assert_eq!(line(&mut balancer).await, "192.0.2.9 127.0.0.1 443 //- false\n");
    let mut check = site.connect().await;
    check.write_all(b"PROXY UNKNOWN\r\n").await.unwrap();
    assert_eq!(line(&mut check).await, format!("127.0.0.1 127.0.0.1 {} //- true\n", site.address.port()));
}

#[tokio::test]
async fn who_is_turned_away_gets_no_connection_and_a_balancer_may_still_speak_for_others() {
    let doorkeeper = Arc::new(TurnsAway(Some([127, 0, 0, 1].into())));
    let site = start(Gate { doorkeeper, ..gate() }, r#"{"address":"127.0.0.1:0","protocol":"http"}"#);
    assert!(soon(site.connect().await.read(&mut [0; 9])).await.is_ok_and(|n| n == 0));
    assert_eq!((site.gate.counters.rejected(Rejected::Banned), site.gate.counters.accepted(), site.gate.limits.open()), (1, 0, 0));
    let doorkeeper = Arc::new(TurnsAway(Some([192, 0, 2, 7].into())));
    let site = start(Gate { doorkeeper, ..listed() }, PROXIED);
    let mut balancer = site.connect().await;
    balancer.write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n").await.unwrap();
    assert!(soon(balancer.read(&mut [0; 9])).await.is_ok_and(|n| n == 0));
    assert_eq!(site.gate.counters.rejected(Rejected::Banned), 1);
    let mut balancer = site.connect().await;
    balancer.write_all(b"PROXY TCP4 192.0.2.8 198.51.100.1 56324 443\r\n").await.unwrap();
    assert!(line(&mut balancer).await.starts_with("192.0.2.8 "));
}

#[tokio::test]
async fn a_forged_line_of_an_unlisted_peer_ends_the_connection() {
    let trusted = ArcSwap::from_pointee(TrustedProxies::new(["10.0.0.0/8"]).unwrap());
    let site = start(Gate { trusted, ..gate() }, PROXIED);
    let mut forger = site.connect().await;
    forger.write_all(b"PROXY TCP4 10.0.0.1 198.51.100.1 56324 443\r\n").await.unwrap();
    assert!(soon(forger.read(&mut [0; 9])).await.is_ok_and(|n| n == 0));
    assert_eq!(site.gate.counters.rejected(Rejected::ProxyUnlisted), 1);
    assert_eq!(site.gate.limits.open(), 0);
}

#[tokio::test]
async fn without_a_line_or_with_half_of_one_the_connection_ends() {
    let site = start(listed(), PROXIED);
    let mut direct = site.connect().await;
    direct.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(ends(&mut direct).await);
    let mut half = site.connect().await;
    half.write_all(b"PROXY TCP4 10.0").await.unwrap();
    half.shutdown().await.unwrap();
    assert!(ends(&mut half).await);
    let mut silent = site.connect().await;
    assert!(ends(&mut silent).await, "at the deadline");
    assert_eq!(site.gate.counters.rejected(Rejected::ProxyLine), 3);
    site.until(|gate| gate.limits.open() == 0).await;
}

#[tokio::test]
async fn clients_behind_a_listed_peer_have_their_own_limits() {
    let limits = Limits::new(limit::Config { connections_per_ip: 1.try_into().unwrap(), ..Default::default() });
    let site = start(Gate { limits, ..listed() }, PROXIED);
    let speak = async |line: &[u8]| {
        let mut balancer = site.connect().await;
        balancer.write_all(line).await.unwrap();
        balancer
    };
    let mut first = speak(b"PROXY TCP4 192.0.2.7 198.51.100.1 1 443\r\n").await;
    assert!(line(&mut first).await.starts_with("192.0.2.7"));
    let mut second = speak(b"PROXY TCP4 192.0.2.7 198.51.100.1 2 443\r\n").await;
    assert!(ends(&mut second).await);
    let mut other = speak(b"PROXY TCP4 192.0.2.8 198.51.100.1 1 443\r\n").await;
    assert!(line(&mut other).await.starts_with("192.0.2.8"));
    assert_eq!(site.gate.counters.rejected(Rejected::PerAddress), 1);
}

#[tokio::test]
async fn a_unix_socket_is_served_and_takes_a_proxy_line_when_unix_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    for (proxy, line_sent, expected) in [
        ("off", &b""[..], "127.0.0.1 127.0.0.1 0 //- true\n"),
        ("v1", b"PROXY TCP4 192.0.2.7 198.51.100.1 1 443\r\n", "192.0.2.7 127.0.0.1 443 //- false\n"),
    ] {
        let path = folder.path().join(proxy);
        let listener = format!(r#"{{"address":"unix:{}","protocol":"http","proxy_protocol":"{proxy}"}}"#, path.display());
        let _site = start(listed(), &listener);
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(line_sent).await.unwrap();
        assert_eq!(line(&mut client).await, expected);
    }
}
