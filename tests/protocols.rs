//! The protocols that live on atomics alone, in every interleaving of their steps. All their accesses that meet are
//! sequentially consistent, on one variable or ordered by one, so that interleavings are all there is.

use std::collections::HashSet;
use std::hash::Hash;

/// What a step of a thread leads to.
enum Next {
    /// The thread goes on at this line.
    Line(u8),
    /// It cannot go on now.
    Blocked,
    /// It is through.
    Done,
}

const DONE: u8 = u8::MAX;

/// Takes every interleaving of `threads` (each a line number and what the line does) and checks each state that all are
/// done in. A state in which all that are not done are blocked is a deadlock.
fn explore<S: Clone + Eq + Hash>(start: &S, threads: &[fn(&mut S, u8) -> Next], at_end: fn(&S)) -> usize {
    let mut seen = HashSet::new();
    let mut open = vec![(start.clone(), vec![0u8; threads.len()])];
    let mut ends = 0;
    while let Some((state, lines)) = open.pop() {
        if !seen.insert((state.clone(), lines.clone())) {
            continue;
        }
        if lines.iter().all(|line| *line == DONE) {
            at_end(&state);
            ends += 1;
            continue;
        }
        let mut stuck = true;
        for (i, thread) in threads.iter().enumerate().filter(|(i, _)| lines[*i] != DONE) {
            let (mut state, mut lines) = (state.clone(), lines.clone());
            lines[i] = match thread(&mut state, lines[i]) {
                Next::Line(line) => line,
                Next::Done => DONE,
                Next::Blocked => continue,
            };
            stuck = false;
            open.push((state, lines));
        }
        assert!(!stuck, "threads wait for each other at {lines:?}");
    }
    ends
}

/// src/ffi/handle.rs: a call counts itself, then looks whether the cache is open; a close shuts it, then waits for the
/// count to be nothing, then frees the node.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Handle {
    open: bool,
    calls: u8,
    alive: bool,
    closed_by: u8,
}

fn call(handle: &mut Handle, line: u8) -> Next {
    match line {
        0 => handle.calls += 1,
        1 if !handle.open => return Next::Line(3),
        2 => assert!(handle.alive, "a call uses a node that was freed"),
        3 => {
            handle.calls -= 1;
            return Next::Done;
        }
        _ => {}
    }
    Next::Line(line + 1)
}

fn close(handle: &mut Handle, line: u8) -> Next {
    match line {
        // Enters as any call, to see whether it runs in a callback.
        0 => handle.calls += 1,
        1 if !handle.open => return Next::Line(7),
        2 => assert!(handle.alive, "a close uses a node that was freed"),
        3 => handle.calls -= 1,
        4 if !std::mem::replace(&mut handle.open, false) => return Next::Done,
        5 if handle.calls > 0 => return Next::Blocked,
        6 => {
            assert!(handle.alive, "freed twice");
            handle.alive = false;
            handle.closed_by += 1;
            return Next::Done;
        }
        7 => {
            handle.calls -= 1;
            return Next::Done;
        }
        _ => {}
    }
    Next::Line(line + 1)
}

#[test]
fn a_handle_is_freed_once_and_never_under_a_call() {
    let start = Handle { open: true, calls: 0, alive: true, closed_by: 0 };
    let ends = explore(&start, &[call, call, call, close, close], |end| {
        assert!(!end.alive && end.calls == 0 && end.closed_by == 1);
    });
    assert!(ends > 0);
}

/// src/control/watch.rs: an answer and the deadline of one request, which fences its backend until it answers.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Ticket {
    state: u8,
    late: i8,
    told_answer: u8,
    told_late: u8,
}

const WAITING: u8 = 0;
const ANSWERED: u8 = 1;
const LATE: u8 = 2;

fn answer(ticket: &mut Ticket, line: u8) -> Next {
    match line {
        0 => {
            if std::mem::replace(&mut ticket.state, ANSWERED) == LATE {
                return Next::Line(2);
            }
            Next::Line(1)
        }
        1 => {
            ticket.told_answer += 1;
            Next::Done
        }
        _ => {
            ticket.late -= 1;
            assert!(ticket.late >= 0, "unfenced before it was fenced");
            Next::Done
        }
    }
}

fn expire(ticket: &mut Ticket, line: u8) -> Next {
    match line {
        0 if ticket.state != WAITING => return Next::Done,
        1 => ticket.late += 1,
        2 if ticket.state != WAITING => return Next::Line(4),
        2 => ticket.state = LATE,
        3 => {
            ticket.told_late += 1;
            return Next::Done;
        }
        4 => {
            ticket.late -= 1;
            return Next::Done;
        }
        _ => {}
    }
    Next::Line(line + 1)
}

#[test]
fn a_request_is_completed_once_and_its_backend_is_not_left_fenced() {
    let start = Ticket { state: WAITING, late: 0, told_answer: 0, told_late: 0 };
    let ends = explore(&start, &[answer, expire], |end| {
        assert_eq!((end.told_answer + end.told_late, end.late), (1, 0));
    });
    assert!(ends >= 2);
}

/// src/l1/beside.rs: readers side by side that take and return a share of one object each. One becomes the holder of an
/// object without shares by an exchange, and from then on what it holds is its own to change.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Shared {
    holder: u8,
    held: u8,
    /// What each reader saw before its exchange.
    seen: [u8; 3],
    /// Who had to go and have the lock alone.
    alone: u8,
    locked: i8,
    uses: u8,
    touches: u8,
}

fn read<const ME: u8>(object: &mut Shared, line: u8) -> Next {
    match line {
        0 if object.held > 0 => {
            object.alone += 1;
            return Next::Done;
        }
        0 => object.seen[ME as usize] = object.holder,
        1 if object.held > 0 || object.holder != object.seen[ME as usize] => {
            object.alone += 1;
            return Next::Done;
        }
        1 => (object.holder, object.held) = (ME, 1),
        // The bytes locked are counted after the fact; a call that is alone comes after both, or before.
        2 => object.locked += 1,
        3 => {
            assert_eq!((object.holder, object.held), (ME, 1), "another reader changed what was not its own");
            object.uses += 1;
        }
        4 => object.held = 0,
        5 => object.locked -= 1,
        _ => {
            object.touches += 1;
            return Next::Done;
        }
    }
    Next::Line(line + 1)
}

#[test]
fn of_readers_side_by_side_each_returns_its_own_share_and_touches_once() {
    let start = Shared { holder: 9, held: 0, seen: [9; 3], alone: 0, locked: 0, uses: 0, touches: 0 };
    let ends = explore(&start, &[read::<0>, read::<1>, read::<2>], |end| {
        assert_eq!((end.held, end.locked), (0, 0));
        assert_eq!((end.uses, end.touches), (3 - end.alone, 3 - end.alone));
        assert!(end.alone < 3, "nobody came through");
    });
    assert!(ends > 3);
}
