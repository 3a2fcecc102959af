//! hyper's HTTP/1 server as another reader: what the guard accepts, hyper reads with the same bodies and boundaries.

use std::{cell::RefCell, convert::Infallible, rc::Rc};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, Uri,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use palisade::guard::Version;
use tokio::io::AsyncWriteExt;

use crate::pipeline;

pub fn check(data: &[u8]) {
    let ours = pipeline::read(&[data]);
    if ours.refused {
        return;
    }
    let mut expected = Vec::new();
    let mut partial = false;
    for request in &ours.requests {
        let target = request.head.target.of(&request.bytes);
        if Uri::try_from(target).is_err() {
            // hyper answers 400 and closes: its type for targets is narrower than RFC 9112 with what browsers send.
            partial = true;
            break;
        }
        expected.push((String::from_utf8_lossy(request.head.method.of(&request.bytes)).into_owned(), request.body.clone()));
        if request.head.close || request.head.version == Version::Http10 {
            partial = true;
            break;
        }
    }
    let theirs = serve(data);
    if partial {
        // Whether hyper goes on after an HTTP/1.0 request is its own matter; the next request is at the same place.
        assert!(theirs.starts_with(&expected), "{theirs:?} {expected:?}");
    } else {
        assert_eq!(theirs, expected);
    }
}

/// Every request that hyper reads from the stream: method and complete body.
pub fn serve(data: &[u8]) -> Vec<(String, Vec<u8>)> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(8 << 20);
        client.write_all(data).await.expect("room for the input");
        client.shutdown().await.expect("an open pipe");
        let service = service_fn(|request: Request<Incoming>| {
            let seen = Rc::clone(&seen);
            async move {
                let method = request.method().to_string();
                if let Ok(body) = request.into_body().collect().await {
                    seen.borrow_mut().push((method, body.to_bytes().to_vec()));
                }
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        });
        // An error is how hyper reports that a stream was cut off or refused; what it read until then counts.
        drop(http1::Builder::new().half_close(true).serve_connection(TokioIo::new(server), service).await);
    });
    Rc::try_unwrap(seen).expect("hyper has let go of the service").into_inner()
}
