//! The last word on framing: writes the head that Puma gets, byte by byte.
use crate::layers::buffer::Complete;

/// A request as Puma will read it: one head in one spelling, one framing, and the whole body. Only this layer makes one.
#[derive(Debug)]
pub struct Canonical {
    head: Vec<u8>,
    body: Complete,
    head_only: bool,
    idempotent: bool,
    upgrade: bool,
}

impl Canonical {
    /// The bytes of the head, ending in an empty line.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The method is HEAD: the answer has no body whatever it says.
    pub fn is_head(&self) -> bool {
        self.head_only
    }

    /// May be sent again where Puma cannot have answered (RFC 9110 §9.2.2).
    pub fn is_idempotent(&self) -> bool {
        self.idempotent
    }

    /// Asks for WebSocket: 101 is an answer to it.
    pub fn wants_upgrade(&self) -> bool {
        self.upgrade
    }

    /// The head and the body.
    pub fn into_parts(self) -> (Vec<u8>, Complete) {
        (self.head, self.body)
    }
}

#[cfg(test)]
impl Canonical {
    /// As if the layer had made it, for tests of what comes behind it.
    pub(crate) fn forged(head: &str, body: Complete) -> Self {
        let method = head.split(' ').next().unwrap_or_default();
        Canonical {
            head_only: method == "HEAD",
            idempotent: matches!(method, "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS"),
            upgrade: head.contains("Upgrade: websocket"),
            head: head.as_bytes().to_vec(),
            body,
        }
    }
}
