//! The PROXY line: the verdict on a prefix, once there is one, is the verdict on the whole.

use palisade::accept::proxy_protocol::{ProxyProtocol, Verdict};

pub fn check(data: &[u8]) {
    for mode in [ProxyProtocol::V1, ProxyProtocol::V2, ProxyProtocol::Any] {
        let whole = mode.read(data);
        if let Verdict::Complete(length, _) = whole {
            assert!(length <= data.len(), "the header ends within what was read");
        }
        for end in 0..=data.len().min(600) {
            match mode.read(&data[..end]) {
                Verdict::Partial => {}
                verdict => {
                    assert_eq!(verdict, whole, "{mode:?} at {end}");
                    break;
                }
            }
        }
    }
}
