//! Uploads: whole, once, with their length, and without holding Puma.

use super::*;
use crate::harness::{eventually, recorder::Recorder};

#[test]
fn two_hundred_mebibytes_arrive_whole() {
    let Some(puma) = Puma::cluster() else { return };
    let palisade = Setup::before(puma.address()).with("[limits]\nbody = \"256MiB\"\n").start();
    let mut block = noise(1 << 20);
    let mut sum = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut client = palisade.connect();
    client.send(format!("POST /echo HTTP/1.1\r\nHost: localhost\r\nX-Test-Id: large\r\nContent-Length: {}\r\n\r\n", 200 << 20));
    for index in 0_u64..200 {
        block[..8].copy_from_slice(&index.to_be_bytes());
        sum.update(&block);
        client.send(&block);
    }
    let seen = client.answer_to("POST").json();
    let sum: String = sum.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((&seen["length"], &seen["sha256"]), (&(200 << 20).into(), &sum.into()));
    assert_eq!(puma.count("large"), 1);
    let resident = palisade.process().resident_kib();
    assert!(resident < 150 << 10, "the upload went through memory: {resident} KiB resident");
}

#[test]
fn puma_hears_of_an_upload_only_when_it_is_whole() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    let mut client = palisade.connect();
    client.send("POST /mirror HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345");
    assert!(client.silent_for(Duration::from_millis(500)));
    assert!(!recorder.got(b"/mirror"), "a half upload reached Puma");
    client.send("67890");
    assert_eq!(client.answer_to("POST").status, 200);
    assert!(recorder.got(b"\r\n\r\n1234567890"));
}

#[test]
fn an_upload_that_is_broken_off_never_reaches_puma() {
    let recorder = Recorder::start();
    let palisade = Setup::before(recorder.address()).start();
    for reset in [false, true] {
        let mut client = palisade.connect();
        client.send("POST /broken HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nonly a part");
        if reset { client.reset() } else { drop(client) }
    }
    eventually("both ends are logged", || (palisade.log().iter().filter(|l| l["end"] == "client_abort").count() == 2).then_some(()));
    palisade.serves();
    assert!(!recorder.got(b"/broken"));
}

#[test]
fn an_upload_leaves_no_file_behind() {
    let Some((_puma, palisade)) = front() else { return };
    let body = noise(3 << 20);
    let mut client = palisade.connect();
    client.send(format!("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.send(&body[..2 << 20]);
    thread::sleep(Duration::from_millis(200));
    let names = || std::fs::read_dir(palisade.spool()).unwrap().count();
    assert_eq!(names(), 0, "a spool file has a name that others can open");
    client.send(&body[2 << 20..]);
    arrived_whole(&client.answer_to("POST"), &body);
    assert_eq!(names(), 0);
}

#[test]
fn many_uploads_at_once_do_not_mix() {
    let Some((_puma, palisade)) = front() else { return };
    let start = Instant::now();
    thread::scope(|scope| {
        for n in 0..16_usize {
            let palisade = &palisade;
            scope.spawn(move || {
                let body = noise(200_000 + n * 1_000).into_iter().map(|b| b ^ u8::try_from(n).unwrap()).collect::<Vec<_>>();
                let mut request = format!("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
                request.extend_from_slice(&body);
                arrived_whole(&palisade.connect().ask(request), &body);
            });
        }
    });
    assert!(start.elapsed() < Duration::from_secs(30));
}
