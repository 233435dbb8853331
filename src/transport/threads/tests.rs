use super::*;
use crate::transport::{Deadline, Patience};
use std::time::Instant;

fn wait_for(seconds: f64) -> Wait<'static> {
    Wait {
        deadline: Deadline::after(Duration::from_secs_f64(seconds)),
        patience: Patience::Transfer,
        operation: &"a test",
    }
}

fn send(t: &Threads, to: Rank, bytes: &[u8]) -> Result<()> {
    // SAFETY: `bytes` outlives the wait, and an abandoned transfer is withdrawn.
    let mut tickets = [Some(unsafe { t.post_send(to, Tag::DATA, bytes.as_ptr(), bytes.len())? })];
    t.wait(&mut tickets, &wait_for(5.0)).inspect_err(|_| assert!(t.abandon(&mut tickets)))
}

fn receive(t: &Threads, from: Rank, len: usize, seconds: f64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    // SAFETY: `bytes` outlives the wait, and an abandoned transfer is withdrawn.
    let mut tickets = [Some(unsafe { t.post_recv(from, Tag::DATA, bytes.as_mut_ptr(), len)? })];
    t.wait(&mut tickets, &wait_for(seconds)).inspect_err(|_| assert!(t.abandon(&mut tickets)))?;
    Ok(bytes)
}

#[test]
fn messages_arrive_in_order_whoever_comes_first() {
    for late in [0, 1] {
        let results = run(2, |t| {
            if t.rank() == late {
                std::thread::sleep(Duration::from_millis(20));
            }
            if t.rank() == 0 {
                send(&t, 1, &[1])?;
                send(&t, 1, &[2, 3])?;
                return Ok(vec![]);
            }
            Ok([receive(&t, 0, 1, 5.0)?, receive(&t, 0, 2, 5.0)?].concat())
        });
        assert_eq!(results[1].as_deref().unwrap(), [1, 2, 3]);
    }
}

#[test]
fn a_wrong_length_is_an_error_on_both_sides() {
    let results = run(2, |t| match t.rank() {
        0 => send(&t, 1, &[1, 2]),
        _ => receive(&t, 0, 3, 5.0).map(drop),
    });
    assert!(results.iter().all(|r| matches!(r, Err(Error::Mismatch { .. }))), "{results:?}");
}

#[test]
fn a_deadline_names_who_is_missing() {
    let started = Instant::now();
    let results = run(3, |t| match t.rank() {
        0 => receive(&t, 2, 1, 0.1).map(drop),
        _ => {
            std::thread::sleep(Duration::from_millis(300));
            Ok(())
        }
    });
    let Err(Error::Stalled { waiting: 0, missing, seconds, .. }) = &results[0] else { panic!("{results:?}") };
    assert_eq!(missing[0].rank, 2);
    assert!((0.09..0.3).contains(seconds), "{seconds}");
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_rank_that_panics_or_leaves_is_lost_to_the_others() {
    let results = run(3, |t| match t.rank() {
        1 => panic!("on purpose"),
        _ => receive(&t, 1, 1, 60.0).map(drop),
    });
    for rank in [0, 2] {
        let Err(Error::PeerLost { peer, .. }) = &results[rank] else { panic!("{results:?}") };
        assert_eq!(peer.rank, 1);
    }
    assert!(results[1].as_ref().unwrap_err().to_string().contains("on purpose"));

    let results = run(2, |t| if t.rank() == 1 { Ok(()) } else { receive(&t, 1, 1, 60.0).map(drop) });
    assert!(matches!(&results[0], Err(Error::PeerLost { peer, .. }) if peer.rank == 1), "{results:?}");
}

#[test]
fn the_last_message_of_a_rank_that_left_still_arrives() {
    let results = run(2, |t| match t.rank() {
        0 => {
            std::thread::sleep(Duration::from_millis(30));
            receive(&t, 1, 1, 5.0)
        }
        _ => {
            let byte = [7];
            // SAFETY: the array outlives the wait.
            let mut tickets = [Some(unsafe { t.post_send(0, Tag::DATA, byte.as_ptr(), 1)? })];
            t.wait(&mut tickets, &wait_for(5.0))?;
            Ok(vec![])
        }
    });
    assert_eq!(results[0].as_deref().unwrap(), [7]);
}
