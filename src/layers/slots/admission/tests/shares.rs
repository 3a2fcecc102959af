//! Clients, networks, classes and lanes beside each other.

use super::*;

#[test]
fn one_client_has_its_share_while_others_are_there() {
    let mut case = Case::new(Policy { client_share: 0.34, ..policy() }, &[5]);
    // Alone, it may have everything but one thread here ...
    for _ in 0..4 {
        case.take(ask(1)).unwrap();
    }
    // ... until somebody else comes.
    case.take(ask(2)).unwrap();
    for ticket in 0..10 {
        case.enqueue(ask(1), ticket).unwrap();
    }
    case.enqueue(ask(2), 100).unwrap();
    case.release(0, ask(1), 10);
    assert_eq!(case.next(), [100], "the other client goes first");
    case.release(0, ask(1), 10);
    assert_eq!(case.next(), [] as [u32; 0], "two are its share");
    assert_eq!(case.take(ask(3)), Some(0), "the free thread is for others");
    case.release(0, ask(1), 10);
    assert_eq!(case.next(), [0], "below its share it goes on, in order");
}

#[test]
fn a_client_that_stays_alone_gets_everything_again() {
    let mut case = Case::new(Policy { client_share: 0.34, ..policy() }, &[4]);
    case.take(ask(2)).unwrap();
    case.release(0, ask(2), 10);
    case.take(ask(1)).unwrap();
    case.take(ask(1)).unwrap();
    assert_eq!(case.take(ask(1)), None);
    case.core.enqueue(ask(1), 0, case.now).unwrap();
    assert_eq!(case.next(), [] as [u32; 0]);
    case.now += SECOND * 11;
    assert!(case.take(ask(1)).is_some());
    case.release(1, ask(1), 10);
    assert_eq!(case.next(), [0]);
}

#[test]
fn a_client_whose_company_left_while_it_waited_gets_the_free_threads() {
    let mut case = Case::new(Policy { client_share: 0.34, ..policy() }, &[3]);
    assert_eq!((case.take(ask(2)), case.take(ask(1)), case.take(ask(1))), (Some(0), Some(0), Some(0)));
    case.enqueue(ask(1), 7).unwrap();
    case.release(0, ask(2), 10);
    assert!(case.next().is_empty(), "it has its share");
    case.now += SECOND * 11;
    assert_eq!(case.next(), [7]);
}

#[test]
fn parked_requests_of_a_client_do_not_wait_for_one_that_left() {
    let mut case = Case::new(Policy { client_share: 0.2, ..policy() }, &[3]);
    for n in [2, 1, 3] {
        case.take(ask(n)).unwrap();
    }
    let first = case.enqueue(ask(1), 0).unwrap();
    case.enqueue(ask(1), 1).unwrap();
    // Its own thread ends and the first moves up, but another client takes that thread.
    case.core.release(0, &ask(1), false, None, case.now);
    assert_eq!(case.take(ask(4)), Some(0));
    case.core.leave(first);
    case.release(0, ask(4), 10);
    assert_eq!(case.next(), [1]);
}

#[test]
fn streams_have_their_share() {
    let mut case = Case::new(policy(), &[4]);
    let stream = Ask { lane: Lane::Stream, ..ask(1) };
    case.take(stream).unwrap();
    case.take(stream).unwrap();
    assert_eq!(case.take(stream), None);
    case.enqueue(stream, 7).unwrap();
    assert_eq!(case.next(), [] as [u32; 0]);
    assert!(case.take(ask(1)).is_some());
    case.release(0, stream, 10);
    assert_eq!(case.next(), [7]);
    let mut turned = ask(1);
    case.core.change_lane(&mut turned, Lane::Stream);
    assert_eq!(case.core.figures().streams, 3);
}

#[test]
fn reserved_threads_are_for_their_class_but_never_the_last_one() {
    let mut case = Case::new(Policy { reserves: vec![1, 0], ..policy() }, &[2]);
    case.take(ask(1)).unwrap();
    assert_eq!(case.take(ask(1)), None);
    assert!(case.take(Ask { class: 0, ..ask(1) }).is_some());
    let mut one = Case::new(Policy { reserves: vec![1, 0], ..policy() }, &[1]);
    assert!(one.take(ask(1)).is_some());
}

#[test]
fn a_full_queue_of_a_flood_has_room_for_a_newcomer_and_not_for_the_flood() {
    let flood = |n: u8| Ask { client: ClientKey::of(std::net::IpAddr::from([198, 51, 100, n])), ..ask(1) };
    let mut case = Case::new(Policy { max: 20, ..policy() }, &[1]);
    case.take(flood(0)).unwrap();
    for n in 0..20 {
        case.enqueue(flood(n), n.into()).unwrap();
    }
    assert!(case.enqueue(flood(99), 99).is_err(), "one more of the same network");
    let place = case.enqueue(ask(7), 107).unwrap();
    assert_eq!(case.core.figures().waiting, 20, "one of the flood went in its favour");
    assert!(case.core.patience(place, case.now).is_some());
    // Three more may come; then the flood has no longer more than four times as much.
    assert!((0..9).all(|n| case.enqueue(Ask { client: client(20 + n), ..ask(1) }, 300).is_ok() == (n < 3)));
    assert_eq!(case.core.figures().waiting, 20);
}

#[test]
fn in_a_standing_queue_a_network_without_threads_comes_before_one_that_has_them() {
    let flood = |n: u8| Ask { client: ClientKey::of(std::net::IpAddr::from([198, 51, 100, n])), ..ask(1) };
    let mut case = Case::new(policy(), &[2]);
    case.take(flood(0)).unwrap();
    case.take(flood(1)).unwrap();
    case.enqueue(flood(2), 2).unwrap();
    case.enqueue(ask(7), 7).unwrap();
    for n in 8..40 {
        case.enqueue(flood(n), n.into()).unwrap();
    }
    case.now += SECOND * 2;
    case.release(0, flood(0), 200);
    assert_eq!(case.next(), [7]);
    case.release(0, ask(7), 200);
    assert_eq!(case.next(), [39], "among equals the newest");
}

#[test]
fn more_urgent_requests_do_not_give_way_and_neither_does_room_for_a_body_that_is_too_large() {
    let mut case = Case::new(Policy { max: 2, ..policy() }, &[1]);
    case.take(ask(1)).unwrap();
    case.enqueue(Ask { class: 0, ..ask(1) }, 1).unwrap();
    case.enqueue(Ask { class: 0, ..ask(1) }, 2).unwrap();
    assert!(case.enqueue(ask(200), 3).is_err());
    let mut case = Case::new(policy(), &[1]);
    case.take(ask(1)).unwrap();
    for ticket in 0..2 {
        case.enqueue(Ask { memory: 500, ..ask(1) }, ticket).unwrap();
    }
    let newcomer = Ask { client: ClientKey::of(std::net::IpAddr::from([198, 51, 100, 1])), memory: 501, ..ask(1) };
    assert!(case.enqueue(newcomer, 4).is_err());
    assert!(case.enqueue(Ask { memory: 500, ..newcomer }, 5).is_ok(), "one of the two gave way");
    assert_eq!(case.core.figures().waiting, 2);
}

#[test]
fn a_network_without_threads_comes_first_before_the_queue_stands_as_well() {
    let flood = |n: u8| Ask { client: ClientKey::of(std::net::IpAddr::from([198, 51, 100, n])), ..ask(1) };
    let mut case = Case::new(policy(), &[2]);
    case.take(flood(0)).unwrap();
    case.take(flood(1)).unwrap();
    for n in 2..60 {
        case.enqueue(flood(n), n.into()).unwrap();
    }
    case.enqueue(ask(7), 107).unwrap();
    case.release(0, flood(0), 10);
    assert_eq!(case.next(), [107]);
    case.release(0, ask(7), 10);
    assert_eq!(case.next(), [2], "the oldest of the others");
}

#[test]
fn a_queue_that_has_begun_to_stand_and_is_too_long_is_open_to_a_newcomer() {
    let flood = |n: u8| Ask { client: ClientKey::of(std::net::IpAddr::from([198, 51, 100, n])), ..ask(1) };
    let mut case = Case::new(policy(), &[1]);
    case.take(flood(0)).unwrap();
    for n in 0..50 {
        case.enqueue(flood(n), n.into()).unwrap();
    }
    case.now += SECOND * 2;
    assert!(case.enqueue(flood(99), 99).is_err());
    assert!(case.enqueue(ask(7), 107).is_ok());
    assert_eq!(case.core.figures().waiting, 50);
}
