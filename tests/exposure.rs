//! Threat: exposure. The application hears one truth, made from the connection; the client hears nothing it need not.

use std::{net::TcpStream, time::Duration};

use crate::harness::{
    palisade::{Palisade, Setup},
    puma::Puma,
    recorder::Recorder,
};

fn front() -> Option<(Puma, Palisade)> {
    let puma = Puma::cluster()?;
    let palisade = Setup::before(puma.address()).tls().start();
    Some((puma, palisade))
}

/// Fields by which an application or its middleware would believe a client's word about itself.
const CLAIMS: &[&str] = &[
    "Forwarded: for=6.6.6.6;proto=https;host=evil.example",
    "X-Forwarded-For: 6.6.6.6",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-Port: 666",
    "X-Forwarded-Proto: gopher",
    "X-Forwarded-Scheme: gopher",
    "X-Forwarded-Ssl: on",
    "X-Forwarded-Server: evil.example",
    "X-Forwarded-Prefix: /evil",
    "X-Forwarded-By: 6.6.6.6",
    "X-Real-IP: 6.6.6.6",
    "Client-IP: 6.6.6.6",
    "X-Client-IP: 6.6.6.6",
    "True-Client-IP: 6.6.6.6",
    "X-Cluster-Client-IP: 6.6.6.6",
    "CF-Connecting-IP: 6.6.6.6",
    "Proxy: http://evil.example",
    "X-Original-URL: /evil",
    "X-Rewrite-URL: /evil",
    "X-Request-Start: t=1.666",
    "X-Queue-Start: t=1.666",
    "X-Accel-Mapping: /=/evil",
    "X-Accel-Redirect: /evil",
    "X-Sendfile-Type: X-Evil",
    "X-Request-Id: evil\"id",
    "X_Forwarded_For: 6.6.6.6",
    "X_Forwarded_Proto: gopher",
    "X_Real_IP: 6.6.6.6",
    "SSL_CLIENT_CERT: evil",
];

#[test]
fn the_application_believes_the_connection_and_not_the_client() {
    let Some((_puma, palisade)) = front() else { return };
    let request = format!("GET /env HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", CLAIMS.join("\r\n"));
    for (mut client, scheme) in [(palisade.connect(), "http"), (palisade.connect_tls(), "https")] {
        let env = client.ask(&request).json();
        for (key, value) in env.as_object().unwrap() {
            let value = value.to_string().to_lowercase();
            for lie in ["6.6.6.6", "evil", "gopher", "1.666", ":666"] {
                assert!(!value.contains(lie), "{key} carries the client's claim: {value}");
            }
        }
        assert_eq!(env["HTTP_X_FORWARDED_FOR"], "127.0.0.1");
        assert_eq!(env["HTTP_X_REAL_IP"], "127.0.0.1");
        assert_eq!(env["HTTP_X_FORWARDED_PROTO"], scheme);
        assert_eq!(env["HTTP_X_FORWARDED_HOST"], "localhost");
        assert_eq!(env["rack.url_scheme"], scheme);
        assert_eq!(env["HTTP_HOST"], "localhost");
        let start = env["HTTP_X_REQUEST_START"].as_str().and_then(|v| v.strip_prefix("t=")).and_then(|v| v.parse::<f64>().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(start.is_some_and(|start| (now - start).abs() < 60.0), "{:?}", env["HTTP_X_REQUEST_START"]);
        assert!(env["HTTP_X_REQUEST_ID"].as_str().is_some_and(|id| id.len() >= 16), "{:?}", env["HTTP_X_REQUEST_ID"]);
    }
}

#[test]
fn two_lines_of_cookies_are_one_list_and_a_twin_is_never_the_truth() {
    let Some((_puma, palisade)) = front() else { return };
    let twins = "X-Real_IP: 6.6.6.6\r\nX_REAL_IP: 6.6.6.6\r\nX-FORWARDED_FOR: 6.6.6.6\r\nUser_Agent: evil\r\nCookie_: a=evil\r\n";
    let request = format!("GET /env HTTP/1.1\r\nHost: localhost\r\nCookie: a=1\r\n{twins}User-Agent: honest\r\nCookie: b=2; c=3\r\n\r\n");
    for mut client in [palisade.connect(), palisade.connect_tls()] {
        let env = client.ask(&request).json();
        assert_eq!(env["HTTP_COOKIE"], "a=1; b=2; c=3");
        assert_eq!(env["HTTP_USER_AGENT"], "honest");
        assert_eq!((&env["HTTP_X_REAL_IP"], &env["HTTP_X_FORWARDED_FOR"]), (&"127.0.0.1".into(), &"127.0.0.1".into()));
        assert!(!env.to_string().contains("evil") && !env.to_string().contains("6.6.6.6"), "{env}");
    }
}

#[test]
fn a_field_named_by_connection_ends_here() {
    let Some((_puma, palisade)) = front() else { return };
    let env = palisade.connect().ask("GET /env HTTP/1.1\r\nHost: localhost\r\nConnection: X-Internal, X-Real-IP\r\nX-Internal: 1\r\n\r\n");
    if env.status == 200 {
        let env = env.json();
        assert!(env["HTTP_X_INTERNAL"].is_null());
        assert_eq!(env["HTTP_X_REAL_IP"], "127.0.0.1", "the client struck out what the proxy says");
    } else {
        assert_eq!(env.status, 400);
    }
    let env = palisade.connect().ask("GET /env HTTP/1.1\r\nHost: localhost\r\nConnection: X-Internal\r\nX-Internal: 1\r\n\r\n").json();
    assert!(env["HTTP_X_INTERNAL"].is_null() && env["HTTP_CONNECTION"] != "X-Internal");
}

#[test]
fn a_trusted_proxy_is_believed_up_to_itself() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).with("trusted_proxies = [\"127.0.0.1/32\"]\n").start();
    let env = palisade.connect().ask("GET /env HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.9\r\n\r\n").json();
    assert_eq!(env["HTTP_X_REAL_IP"], "203.0.113.9", "the last address that the trusted proxy saw");
    palisade.logged("the client's address", |line| line["ip"] == "203.0.113.9");
    let untrusted = crate::harness::client::Client::tcp_from([127, 0, 0, 9], palisade.http())
        .ask("GET /env HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
        .json();
    assert_eq!(untrusted["HTTP_X_REAL_IP"], "127.0.0.9");
}

#[test]
fn answers_do_not_name_what_stands_behind() {
    let Some((_puma, palisade)) = front() else { return };
    let answer = palisade.connect().get("/leaky");
    assert_eq!(answer.status, 200);
    for field in ["server", "x-runtime", "x-powered-by", "x-sendfile", "x-accel-redirect"] {
        assert_eq!(answer.all(field), Vec::<&str>::new(), "{field}");
    }
    let refused = palisade.connect().ask("GET /%00 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for word in ["puma", "ruby", "hyper", "rust"] {
        assert!(!format!("{refused:?}").to_lowercase().contains(word), "a refusal names {word}: {refused:?}");
    }
}

#[test]
fn an_unknown_host_learns_nothing_and_reaches_nobody() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    for host in ["evil.example", "localhost.evil.example", "169.254.169.254"] {
        let answer = palisade.connect().ask(format!("GET /unknown HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(answer.status, 421, "{host}");
    }
    palisade.refused("unknown_host");
    assert!(!recorder.got(b"/unknown"));
    palisade.serves();
}

#[test]
fn paths_that_belong_to_no_application_reach_none() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    for path in ["/.env", "/.git/config", "/config/master.key", "/.env.production", "/%2eenv", "/a/.git/HEAD"] {
        let answer = palisade.connect().get(path);
        assert_eq!(answer.status, 404, "{path}");
    }
    palisade.refused("sensitive_path");
    for needle in [&b".env"[..], b".git", b"master.key", b"%2eenv"] {
        assert!(!recorder.got(needle), "{:?} reached Puma", String::from_utf8_lossy(needle));
    }
    assert_eq!(palisade.connect().get("/.well-known/security.txt").status, 200);
}

#[test]
fn a_refusal_repeats_nothing_of_the_request() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    for request in [
        "GET /canary%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: canary.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: <canary>\r\n\r\n",
        "CANARY / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: canary\r\n\r\n",
    ] {
        let mut client = palisade.connect();
        client.send(request);
        let answer = client.answer();
        assert!(answer.status >= 400);
        assert!(!format!("{:?} {}", answer.fields, answer.text()).to_lowercase().contains("canary"), "{request:?}: {answer:?}");
    }
}

#[test]
fn logs_hold_no_secrets_and_cannot_be_forged() {
    let Some((_puma, palisade)) = front() else { return };
    let mut client = palisade.connect();
    client.ask(
        "GET /?token=canary1&page=2&password=canary2 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer canary3\r\nCookie: s=canary4\r\n\
         X-Api-Key: canary5\r\nUser-Agent: a\"},{\"end\":\"forged\\\r\nReferer: http://x/?token=canary6\r\n\r\n",
    );
    let line = palisade.logged("the request", |line| line["path"] == "/" && line["status"] == 200);
    assert!(!line.to_string().contains("canary"), "{line}");
    assert!(line["query"].as_str().is_some_and(|query| query.contains("page=2")), "{line}");
    assert_eq!(line["end"], "ok");
    assert_eq!(palisade.log().iter().filter(|line| line["end"] == "forged").count(), 0);
    assert!(!palisade.process().output().contains("canary"));
}

#[test]
fn every_request_has_one_log_line_with_the_id_that_rails_logs() {
    let Some((_puma, palisade)) = front() else { return };
    let id = palisade.connect().get("/env").json()["HTTP_X_REQUEST_ID"].as_str().unwrap().to_owned();
    let line = palisade.logged("the request", |line| line["id"] == id.as_str());
    assert_eq!((line["method"].as_str(), line["path"].as_str(), line["status"].as_u64()), (Some("GET"), Some("/env"), Some(200)));
    assert_eq!(line["ip"], "127.0.0.1");
    assert_eq!(palisade.log().iter().filter(|line| line["id"] == id.as_str()).count(), 1);
}

#[test]
fn the_admin_pages_are_not_on_the_public_side() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    for path in ["/metrics", "/ready", "/live"] {
        assert_eq!(palisade.connect().get(path).text(), "ok\n", "{path} is the application's");
    }
    let metrics = palisade.admin("/metrics").unwrap().text();
    assert!(metrics.contains("# TYPE palisade_requests_rejected_total counter"), "{metrics}");
    assert!(!metrics.contains("127.0.0.1"), "an address in a label");
    assert_eq!(palisade.admin("/live").unwrap().status, 200);
    assert_eq!(palisade.admin("/nowhere").unwrap().status, 404);
}

#[test]
fn a_plain_request_on_the_tls_port_gets_no_application() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).tls().start();
    let stream = TcpStream::connect(palisade.https()).unwrap();
    drop(stream);
    let mut client = crate::harness::client::Client::tcp(palisade.https());
    client.send("GET /plain HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.closed_within(Duration::from_secs(10));
    assert!(!recorder.got(b"/plain"));
}
