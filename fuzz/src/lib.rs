//! What fuzzing checks. Each target is one function; `cargo test --lib` runs all of them over the seeds.
//!
//! Two properties everywhere: the verdict does not depend on how the bytes are cut into reads, and what the guard accepts,
//! other readers read with the same boundaries.

pub mod announced;
pub mod answer;
pub mod audit;
pub mod chunked;
pub mod form;
pub mod frames;
pub mod head;
pub mod hyper;
pub mod pipeline;
pub mod puma;
pub mod puma_rb;
pub mod strict;

/// Ways to cut `data` into reads, derived from the data: whole, in two, in three, byte by byte.
pub fn cuts(data: &[u8]) -> Vec<Vec<&[u8]>> {
    let hash = data.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    let place = |shift: u32| (hash >> shift) as usize % (data.len() + 1);
    let (one, other) = (place(0).min(place(32)), place(0).max(place(32)));
    vec![vec![data], vec![&data[..one], &data[one..]], vec![&data[..one], &data[one..other], &data[other..]], data.chunks(1).collect()]
}

#[cfg(test)]
mod tests {
    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
        let seeds: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect();
        assert!(seeds.len() >= 5, "{target}");
        seeds
    }

    #[test]
    fn every_seed_passes_its_target() {
        seeds("head").iter().for_each(|seed| super::head::check(seed));
        seeds("chunked").iter().for_each(|seed| super::chunked::check(seed));
        seeds("answer").iter().for_each(|seed| super::answer::check(seed));
        seeds("pipeline").iter().for_each(|seed| super::pipeline::check(seed));
        seeds("announced").iter().for_each(|seed| super::announced::check(seed));
        seeds("form").iter().for_each(|seed| super::form::check(seed));
        seeds("frames").iter().for_each(|seed| super::frames::check(seed));
        seeds("puma_rb").iter().for_each(|seed| super::puma_rb::check(seed));
        seeds("audit").iter().for_each(|seed| super::audit::check(seed));
        seeds("hyper").iter().for_each(|seed| super::hyper::check(seed));
    }

    #[test]
    fn every_oracle_reads_an_honest_request() {
        let stream = b"POST /a?b HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5;x=\"y\"\r\nhello\r\n0\r\nT: u\r\n\r\nGET / HTTP/1.0\r\n\r\n";
        let read = super::strict::stream(stream);
        assert_eq!(read.end, super::strict::End::Clean);
        assert_eq!(read.messages.iter().map(|m| m.body.len()).collect::<Vec<_>>(), [5, 0]);
        assert_eq!(super::hyper::serve(stream), [("POST".to_owned(), b"hello".to_vec()), ("GET".to_owned(), Vec::new())]);
        let env = super::puma::read(b"POST /a?b HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello").unwrap();
        assert_eq!((env.length, env.head), (5, 58));
    }

    #[test]
    fn every_oracle_refuses_a_dishonest_request() {
        let stream = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        assert_eq!(super::strict::stream(stream).end, super::strict::End::Bad);
        assert!(super::puma::read(b"POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc").is_none());
        assert_eq!(super::hyper::serve(b"GET / HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc"), []);
    }
}
