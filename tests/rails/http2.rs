//! HTTP/2 over TLS, with curl and with hyper's client.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;
use crate::harness::client::tls_config;

#[test]
fn curl_speaks_http_2() {
    let Some((_puma, palisade)) = front_tls() else { return };
    let Some(page) = curl(&palisade, "/bytes/100000", &[]) else { return };
    assert_eq!((page.0.as_str(), page.1.len()), ("2 200", 100_000));

    let file = palisade.spool().parent().unwrap().join("upload");
    let body = noise(1 << 20);
    std::fs::write(&file, &body).unwrap();
    let upload =
        curl(&palisade, "/echo", &["-H", "Content-Type: application/octet-stream", "--data-binary", &format!("@{}", file.display())])
            .unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&upload.1).unwrap();
    assert_eq!((&seen["sha256"], &seen["content_length"]), (&sha256(&body).into(), &"1048576".into()));

    // Without a length: no Content-Length on the way in, one on the way to Puma.
    let streamed = curl(&palisade, "/echo", &["-T", &file.display().to_string(), "-X", "POST", "-H", "Content-Length:"]).unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&streamed.1).unwrap();
    assert_eq!((&seen["sha256"], &seen["content_length"]), (&sha256(&body).into(), &"1048576".into()));

    let head = curl(&palisade, "/bytes/1000", &["-I"]).unwrap();
    assert_eq!(head.0, "2 200");
    assert_eq!(curl(&palisade, "/status/204", &[]).unwrap(), ("2 204".to_owned(), Vec::new()));
    assert_eq!(curl(&palisade, "/status/304", &[]).unwrap(), ("2 304".to_owned(), Vec::new()));
    assert_eq!(curl(&palisade, "/chunked", &[]).unwrap().1, b"part 0\npart 1\npart 2\n");
}

#[tokio::test]
async fn streams_of_one_connection_are_requests_of_their_own() {
    let Some((_puma, palisade)) = front_tls() else { return };
    let sender = handshake(&palisade).await;
    let mut all = tokio::task::JoinSet::new();
    for n in 1..=40_usize {
        let mut sender = sender.clone();
        all.spawn(async move {
            let request = request("GET", &format!("/bytes/{}", n * 1_000), Bytes::new());
            (n, sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes())
        });
    }
    while let Some(done) = all.join_next().await {
        let (n, body) = done.unwrap();
        assert_eq!(body.len(), n * 1_000);
    }
}

#[tokio::test]
async fn cookie_crumbs_are_joined_before_puma_sees_them() {
    let Some((_puma, palisade)) = front_tls() else { return };
    let mut sender = handshake(&palisade).await;
    let mut request = request("GET", "/env", Bytes::new());
    for crumb in ["a=1", "b=2", "c=3"] {
        request.headers_mut().append("cookie", crumb.parse().unwrap());
    }
    let answer = sender.send_request(request).await.unwrap();
    let env: serde_json::Value = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(env["HTTP_COOKIE"], "a=1; b=2; c=3");
    assert_eq!(env["HTTP_HOST"], "localhost");
    assert_eq!(env["rack.url_scheme"], "https");
}

#[tokio::test]
async fn the_clients_word_on_itself_does_not_count_in_http_2_either() {
    let Some((_puma, palisade)) = front_tls() else { return };
    let mut sender = handshake(&palisade).await;
    let mut request = request("GET", "/env", Bytes::new());
    for (name, value) in [
        ("forwarded", "for=6.6.6.6;host=evil.example"),
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "http"),
        ("x-real-ip", "6.6.6.6"),
        ("x_forwarded_for", "6.6.6.6"),
        ("x_real-ip", "6.6.6.6"),
        ("x-request-start", "t=6.6"),
        ("x-request-id", "evil"),
        ("proxy", "http://evil.example"),
    ] {
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let answer = sender.send_request(request).await.unwrap();
    let env: serde_json::Value = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
    for lie in ["6.6.6.6", "evil", "t=6.6"] {
        assert!(!env.to_string().contains(lie), "{lie}: {env}");
    }
    assert_eq!((&env["HTTP_X_FORWARDED_FOR"], &env["HTTP_X_FORWARDED_PROTO"]), (&"127.0.0.1".into(), &"https".into()));
    assert_eq!(env["rack.url_scheme"], "https");
}

async fn handshake(palisade: &Palisade) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let tcp = tokio::net::TcpStream::connect(palisade.https()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(tls_config(palisade.root(), &[b"h2"]));
    let tls = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(method: &str, path: &str, body: Bytes) -> http::Request<Full<Bytes>> {
    http::Request::builder().method(method).uri(format!("https://localhost{path}")).body(Full::new(body)).unwrap()
}

/// `(version status, body)`; none, with a printed reason, without a curl that speaks HTTP/2.
fn curl(palisade: &Palisade, path: &str, more: &[&str]) -> Option<(String, Vec<u8>)> {
    let version = Command::new("curl").arg("--version").output();
    if !version.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("HTTP2")) {
        skip("curl with HTTP/2 is not installed");
        return None;
    }
    let dir = palisade.spool().parent().unwrap().to_owned();
    let body = dir.join("curl.body");
    std::fs::write(&body, b"").unwrap();
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--http2", "--max-time", "30", "--write-out", "%{http_version} %{http_code}", "--cacert"])
        .arg(palisade.cert_file())
        .arg("--output")
        .arg(if more.contains(&"-I") { dir.join("curl.head") } else { body.clone() })
        .args(more)
        .arg(format!("https://localhost:{}{path}", palisade.https().port()))
        .output()
        .unwrap();
    assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    Some((String::from_utf8_lossy(&output.stdout).into_owned(), std::fs::read(&body).unwrap()))
}
