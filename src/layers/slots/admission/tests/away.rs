//! Workers that go and come back.

use super::*;

#[test]
fn a_worker_that_comes_back_is_not_given_everything_at_once() {
    let mut case = Case::new(policy(), &[5, 5]);
    case.now += SECOND * 60;
    case.core.set_down(0, true, case.now);
    case.core.set_down(0, false, case.now);
    let first: Vec<_> = (0..5).map(|_| case.take(ask(1)).unwrap()).collect();
    assert_eq!(first.iter().filter(|worker| **worker == 0).count(), 1, "{first:?}");
    // None of its threads is lost to those who would wait.
    let rest: Vec<_> = (0..5).map(|_| case.take(ask(1)).unwrap()).collect();
    assert_eq!((rest.iter().filter(|worker| **worker == 0).count(), case.take(ask(1))), (4, None), "{rest:?}");
    for worker in first.into_iter().chain(rest) {
        case.release(worker, ask(1), 10);
    }
    case.now += SECOND * 10;
    let warm = (0..6).map(|_| case.take(ask(1)).unwrap()).filter(|worker| *worker == 0).count();
    assert_eq!(warm, 3);
}

#[test]
fn a_worker_that_is_down_gets_nothing_and_its_requests_can_move() {
    let mut case = Case::new(policy(), &[1, 1]);
    assert_eq!(case.take(ask(1)), Some(0));
    case.core.set_down(0, true, case.now);
    assert_eq!(case.core.move_away(0, case.now), Some(1));
    assert_eq!(case.take(ask(1)), None);
    case.core.set_down(0, false, case.now);
    assert_eq!(case.take(ask(1)), Some(0));
}

#[test]
fn a_share_grows_with_the_worker_that_comes_back() {
    let mut case = Case::new(Policy { client_share: 0.34, ..policy() }, &[3, 3]);
    case.core.set_down(1, true, case.now);
    assert_eq!((case.take(ask(2)), case.take(ask(1)), case.take(ask(1))), (Some(0), Some(0), Some(0)));
    case.enqueue(ask(1), 7).unwrap();
    assert!(case.next().is_empty());
    case.core.set_down(1, false, case.now);
    assert_eq!(case.next(), [7]);
}

#[test]
fn a_hot_restart_is_waited_out_and_its_length_is_no_service_time() {
    let mut case = Case::new(policy(), &[1]);
    case.take(ask(1)).unwrap();
    case.release(0, ask(1), 10);
    case.take(ask(1)).unwrap();
    let place = case.enqueue(ask(2), 7).unwrap();
    for _ in 0..8 {
        case.now += SECOND;
        case.core.note_control(true, case.now);
    }
    assert!(matches!(case.core.patience(place, case.now), Some(Patience::Wait(_))), "the queue's deadline stands still");
    case.release(0, ask(1), 8000);
    assert_eq!(case.next(), [7]);
    assert_eq!(case.core.figures().service, Some(Duration::from_millis(10)));
    assert!(!case.core.figures().away);
}

#[test]
fn a_puma_that_answers_is_not_away_whatever_its_control_server_does() {
    let mut case = Case::new(policy(), &[1]);
    case.take(ask(1)).unwrap();
    let place = case.enqueue(ask(2), 7).unwrap();
    for _ in 0..8 {
        case.now += SECOND;
        case.release(0, ask(1), 10);
        case.take(ask(1)).unwrap();
        case.core.note_control(true, case.now);
    }
    assert_eq!(case.core.patience(place, case.now), Some(Patience::Late));
    // A wedged one whose control server answers neither.
    case.now += SECOND * 5;
    case.core.note_control(false, case.now);
    assert!(!case.core.figures().away);
}

#[test]
fn stuck_threads_shrink_the_capacity_and_the_queue() {
    let mut case = Case::new(Policy { max: 10_000, ..policy() }, &[5]);
    case.take(ask(1)).unwrap();
    case.release(0, ask(1), 1000);
    for _ in 0..5 {
        case.take(ask(1)).unwrap();
    }
    for _ in 0..3 {
        case.core.mark_stuck(0);
    }
    // 2 threads that serve, 5 s, 1 s each.
    for ticket in 0..10 {
        case.enqueue(ask(1), ticket).unwrap();
    }
    assert!(case.enqueue(ask(1), 10).is_err());
    case.core.release(0, &ask(1), true, None, case.now);
    assert_eq!(case.core.figures().stuck, 2);
    assert_eq!(case.next(), [0]);
    for _ in 0..2 {
        case.core.mark_stuck(0);
    }
    case.core.mark_stuck(0);
    assert!(case.enqueue(ask(1), 11).is_err(), "nothing serves");
}

#[test]
fn a_deadline_stands_still_while_puma_is_away() {
    let mut case = Case::new(policy(), &[1]);
    case.take(ask(1)).unwrap();
    let place = case.enqueue(ask(1), 0).unwrap();
    case.now += SECOND * 3;
    assert_eq!(case.core.patience(place, case.now), Some(Patience::Wait(SECOND * 2)));
    case.core.set_down(0, true, case.now);
    case.now += SECOND * 8;
    assert!(matches!(case.core.patience(place, case.now), Some(Patience::Wait(_))));
    case.core.set_down(0, false, case.now);
    case.now += SECOND;
    assert_eq!(case.core.patience(place, case.now), Some(Patience::Wait(SECOND)));
    case.now += SECOND;
    assert_eq!(case.core.patience(place, case.now), Some(Patience::Late));
}

#[test]
fn the_hold_ends() {
    let mut case = Case::new(policy(), &[]);
    assert_eq!(case.take(ask(1)), None);
    let place = case.core.enqueue(ask(1), 0, case.now).unwrap();
    case.now += SECOND * 10;
    assert_eq!(case.core.patience(place, case.now), Some(Patience::Away));
}

#[test]
fn a_puma_that_comes_back_serves_who_waited() {
    let mut case = Case::new(policy(), &[]);
    for ticket in 0..3 {
        case.core.enqueue(ask(1), ticket, case.now).unwrap();
    }
    case.now += SECOND * 8;
    case.core.set_workers(&[2], case.now);
    assert_eq!(case.next(), [0, 1], "in order: waiting for Puma is no overload");
}
