//! Requests for the tests of the layers.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{Request, request::Builder};

use crate::{
    accept::client::Client,
    http::arrival::{Arrival, Notes},
};

/// A request to `target` from 192.0.2.1.
pub fn arrived(target: &str) -> Builder {
    from(target, Client { ip: "192.0.2.1".parse().unwrap(), peer: "192.0.2.1".parse().unwrap(), local_port: 80, ..Client::local() })
}

/// A request to `target` from 10.0.0.1, a trusted proxy.
pub fn trusted(target: &str) -> Builder {
    let proxy = "10.0.0.1".parse().unwrap();
    from(target, Client { ip: proxy, peer: proxy, local_port: 80, trusted: true, ..Client::local() })
}

/// A request to `target` from `client`.
pub fn from(target: &str, client: Client) -> Builder {
    Request::builder().extension(Arrival {
        client: Arc::new(client),
        target: Bytes::copy_from_slice(target.as_bytes()),
        notes: Arc::new(Notes::new(Instant::now())),
    })
}
