//! Tests of what the list promises to the rest of the crate: which operations are allowed under a lock, and its ids.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;

use allocation_counter::measure;
use proptest::collection::vec;
use proptest::prelude::*;

use super::ids::{BLOCK, SHARE};
use super::{FIRST_BLOCK, Found, HandlerId, HandlerList, INLINE, Storage};

/// Runs `body` and checks that it neither allocates nor frees.
fn quiet<R>(body: impl FnOnce() -> R) -> R {
    let mut result = None;
    let asked = measure(|| result = Some(body()));
    assert_eq!((asked.count_total, asked.count_current), (0, 0), "allocated, and what is left of it");
    result.unwrap()
}

fn filled(count: usize) -> (HandlerList<usize>, Vec<HandlerId>) {
    let mut list = HandlerList::new();
    let ids = fill(&mut list, count);
    (list, ids)
}

fn fill(list: &mut HandlerList<usize>, count: usize) -> Vec<HandlerId> {
    (0..count).map(|n| list.push(n)).collect()
}

fn values(list: &HandlerList<usize>) -> Vec<usize> {
    list.iter().map(|(_, value)| *value).collect()
}

/// Appends to a list that stays on its thread. Makes room first.
fn push_here<T>(list: &mut HandlerList<T>, value: T) -> HandlerId {
    list.reserve(1);
    list.push_here(|| value).ok().unwrap()
}

/// Checks the invariants of the fields.
fn check<T>(list: &HandlerList<T>) {
    check_slots(list);
    assert!(list.slots.last().is_none_or(|last| last.id.0 < list.end) && list.next <= list.end);
}

/// Checks those that also hold for a list that stays on its thread.
fn check_slots<T>(list: &HandlerList<T>) {
    let empty = list.slots.iter().filter(|slot| slot.value.is_none()).count();
    assert_eq!(list.removed, empty);
    assert!(list.slots.last().is_none_or(|last| last.value.is_some()));
    assert!(list.slots.is_sorted_by(|a, b| a.id < b.id));
}

// ---------------------------------------------------------------------------------------------------------------------
// Under a lock

/// Shows that `quiet` sees an allocation.
#[test]
#[should_panic(expected = "allocated")]
fn a_push_to_a_full_list_allocates() {
    let (mut list, _) = filled(INLINE);
    quiet(|| list.push(4));
}

#[test]
fn a_push_where_there_is_room_is_quiet() {
    for room in [INLINE, FIRST_BLOCK, 100] {
        let mut list = HandlerList::new();
        list.reserve(room);
        quiet(|| {
            for n in 0..room {
                assert!(!list.is_full());
                list.push(n);
            }
        });
        assert_eq!(list.len(), room);
    }
}

/// So is one where there is none, for a list that never leaves its thread: it hands back what it was to push.
#[test]
fn a_push_of_a_list_that_stays_here_is_quiet() {
    for room in [INLINE, FIRST_BLOCK, 100] {
        let mut list = HandlerList::new();
        list.reserve(room);
        quiet(|| (0..room).for_each(|n| assert!(list.push_here(|| n).is_ok())));
        let unused = quiet(|| list.push_here(|| room)).err().unwrap();
        assert_eq!(unused(), room);
        assert!(values(&list).into_iter().eq(0..room));
        check_slots(&list);
    }
}

/// A gap is moved along.
#[test]
fn moving_to_the_first_block_is_quiet() {
    for gap in [None, Some(1)] {
        let mut list = HandlerList::new();
        let ids: Vec<_> = (0..INLINE).map(|n| push_here(&mut list, n)).collect();
        let taken = gap.map(|gap| list.take_out(ids[gap]).unwrap());
        let block = Storage::with_capacity(FIRST_BLOCK);
        let id = quiet(|| list.push_to_block(block, INLINE)).ok().unwrap();
        assert!(values(&list).into_iter().eq((0..=INLINE).filter(|n| Some(*n) != taken)));
        assert_eq!((list.get(id), list.slots.capacity()), (Some(&INLINE), FIRST_BLOCK));
        check_slots(&list);
    }
}

#[test]
fn the_first_block_is_handed_back_if_it_is_not_needed() {
    for count in [0, INLINE - 1, INLINE + 1] {
        let (mut list, _) = filled(count);
        let block = Storage::with_capacity(FIRST_BLOCK);
        let (value, block) = quiet(|| list.push_to_block(block, count)).unwrap_err();
        assert_eq!((value, block.0.capacity()), (count, FIRST_BLOCK));
        assert!(values(&list).into_iter().eq(0..count));
    }
}

#[test]
fn taking_values_out_is_quiet() {
    for count in [0, 1, INLINE, FIRST_BLOCK, 100] {
        let (mut list, ids) = filled(count);
        for id in ids.iter().step_by(2) {
            assert!(quiet(|| list.take_out(*id)).is_some());
            assert!(list.removed <= list.slots.len() / 2);
            check(&list);
        }
        let mut place = None;
        quiet(|| {
            let _ = list.pop();
            list.pop_to(&mut place);
            while list.last_id().is_some_and(|last| list.take_out(last).is_some()) {}
        });
        assert!(list.is_empty());
        check(&list);
    }
}

/// It allocates nothing where there is room for what it takes out.
#[test]
fn taking_out_by_a_predicate_is_quiet() {
    let (mut list, _) = filled(100);
    let mut found = Found::new();
    let refused = quiet(|| list.take_out_if(&mut found, |n| n % 3 == 0));
    assert_eq!((refused, list.len(), found.len()), (Err(34), 100, 0));
    found.reserve_exact(34);
    quiet(|| list.take_out_if(&mut found, |n| n % 3 == 0)).unwrap();
    assert!(found.iter().copied().eq((0..100).step_by(3)));
    assert_eq!(list.len(), 66);
    check(&list);
    assert_eq!(quiet(|| list.take_out_if(&mut found, |n| n % 3 == 0)), Ok(()));
    assert_eq!(found.len(), 34);
    // What is found already takes up room.
    assert_eq!(quiet(|| list.take_out_if(&mut found, |n| n % 3 == 1)), Err(33));
}

#[test]
fn taking_all_and_giving_it_back_are_quiet() {
    for count in [0, INLINE, 100] {
        let (mut list, _) = filled(count);
        let mut taken = quiet(|| list.take());
        assert_eq!((list.len(), taken.len()), (0, count));
        list.push(count);
        assert_eq!(taken.wanted(1).is_some(), taken.is_full());
        taken.reserve(1);
        quiet(|| taken.append(&mut list));
        assert!(values(&taken).into_iter().eq(0..=count));
        check(&taken);
    }
}

#[test]
fn appending_leaves_the_storage_to_its_owner() {
    let (mut newer, _) = filled(1);
    let mut older = newer.take();
    fill(&mut newer, 100);
    assert!(older.wanted(100).is_some());
    older.reserve(100);
    quiet(|| older.append(&mut newer));
    assert!(newer.is_empty() && newer.slots.spilled());
    assert_eq!(older.len(), 101);
}

/// A gap is not moved along, and leaves no trace where it was.
#[test]
fn appending_leaves_gaps_behind() {
    let (mut newer, _) = filled(1);
    let mut older = newer.take();
    let ids = fill(&mut newer, 10);
    assert!(newer.take_out(ids[2]).is_some() && newer.take_out(ids[5]).is_some());
    older.append(&mut newer);
    assert_eq!((older.len(), values(&older).len(), newer.len()), (9, 9, 0));
    newer.push(0);
    check(&older);
    check(&newer);
}

/// A list that is not empty keeps its storage.
#[test]
fn release_quietly_takes_an_empty_lists_storage() {
    for (count, bare) in [(0, true), (INLINE, true), (INLINE + 1, false)] {
        let (mut list, _) = filled(count);
        drop(quiet(|| list.release()));
        assert_eq!((list.len(), list.slots.spilled()), (count, !bare));
        while list.pop().is_some() {}
        let storage = quiet(|| list.release());
        assert!(list.is_bare());
        assert_eq!(storage.0.capacity() == 0, bare);
    }
}

#[test]
fn an_exchange_that_grows_or_shrinks_is_quiet() {
    for (count, left) in [(INLINE, INLINE), (FIRST_BLOCK, FIRST_BLOCK), (64, 64), (300, 20), (300, 3), (300, 0)] {
        let (mut list, ids) = filled(count);
        ids.iter().skip(left).for_each(|id| assert!(list.take_out(*id).is_some()));
        let before = list.slots.capacity();
        let capacity = list.wanted(1).or(list.excess()).unwrap();
        let mut storage = Storage::with_capacity(capacity);
        quiet(|| list.exchange(&mut storage));
        assert_eq!(list.slots.capacity(), capacity);
        assert_eq!(storage.0.capacity(), if before > INLINE { before } else { 0 });
        assert!(storage.0.is_empty() && values(&list).into_iter().eq(0..left));
        check(&list);
        if left == count {
            quiet(|| list.push(count));
        }
    }
}

/// Happens when another thread was faster.
#[test]
fn an_exchange_that_does_not_help_does_nothing() {
    let unchanged = |count, capacity| {
        let (mut list, _) = filled(count);
        let (before, mut storage) = (list.slots.capacity(), Storage::with_capacity(capacity));
        let place = storage.0.as_ptr();
        list.exchange(&mut storage);
        assert_eq!((list.slots.capacity(), storage.0.as_ptr()), (before, place));
        assert!(values(&list).into_iter().eq(0..count));
    };
    unchanged(3, 0);
    unchanged(10, 0); // the values do not fit
    unchanged(40, 20);
    unchanged(5, FIRST_BLOCK); // the list has the same capacity
    unchanged(33, 40); // the list has a larger one, but no excess
    let (mut list, ids) = filled(300);
    ids.iter().skip(20).for_each(|id| assert!(list.take_out(*id).is_some()));
    list.exchange(&mut Storage::with_capacity(10)); // the list has an excess, but the values do not fit
    assert!(list.slots.capacity() >= 300 && values(&list).into_iter().eq(0..20));
}

#[test]
fn an_exchange_leaves_gaps_behind() {
    let (mut list, ids) = filled(100);
    ids.iter().skip(1).step_by(3).for_each(|id| assert!(list.take_out(*id).is_some()));
    let left = values(&list);
    assert!(list.slots.len() > left.len());
    list.exchange(&mut Storage::with_capacity(200));
    assert_eq!((values(&list), list.slots.len()), (left.clone(), left.len()));
    check(&list);
}

#[test]
fn a_list_wants_what_reserve_takes() {
    for count in 0..200 {
        let (list, _) = filled(count);
        for additional in [0, 1, 7, 1000] {
            let wanted = list.wanted(additional);
            assert_eq!(wanted.is_none(), list.slots.capacity() - count >= additional);
            let (mut other, _) = filled(count);
            other.reserve(additional);
            assert_eq!(wanted.unwrap_or(list.slots.capacity()), other.slots.capacity());
        }
    }
}

#[test]
fn the_most_that_can_be_wanted_is_refused() {
    let (mut list, _) = filled(5);
    let most = list.wanted(usize::MAX).unwrap();
    assert!(Storage::<usize>::try_with_capacity(most).is_err());
    assert!(list.try_reserve(usize::MAX).is_err());
    assert!(values(&list).into_iter().eq(0..5));
}

// ---------------------------------------------------------------------------------------------------------------------
// Ids

/// Runs `body` with a function that sends a list to another thread, which appends that many values and sends it back
/// with their ids.
fn with_another_thread<R>(
    body: impl FnOnce(&mut dyn FnMut(HandlerList<usize>, usize) -> (HandlerList<usize>, Vec<HandlerId>)) -> R,
) -> R {
    let (to, jobs) = mpsc::channel::<(HandlerList<usize>, usize)>();
    let (done, from) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            for (mut list, count) in jobs {
                let ids = fill(&mut list, count);
                done.send((list, ids)).unwrap();
            }
        });
        let to = to; // dropped when `body` returns, which ends the thread
        body(&mut |list, count| {
            to.send((list, count)).unwrap();
            from.recv().unwrap()
        })
    })
}

fn rise(ids: &[HandlerId]) -> bool {
    ids.is_sorted_by(|a, b| a < b)
}

#[test]
fn ids_rise_where_two_threads_append_by_turns() {
    let block = usize::try_from(BLOCK).unwrap();
    let more_than_half_a_share = 40_000;
    with_another_thread(|there| {
        let (mut list, mut ids) = (HandlerList::new(), Vec::new());
        for count in (0..3 * block).chain([more_than_half_a_share; 6]) {
            ids.extend(fill(&mut list, count));
            let more;
            (list, more) = there(list, count);
            ids.extend(more);
        }
        assert!(rise(&ids));
        assert!(list.iter().map(|(id, _)| id).eq(ids.iter().copied()));
    });
}

#[test]
fn ids_rise_after_a_take_on_any_thread() {
    with_another_thread(|there| {
        let mut list = HandlerList::new();
        let mut taken = HandlerList::new();
        let mut ids = Vec::new();
        for turn in 1..50 {
            let more;
            if turn % 2 == 0 {
                (list, more) = there(list, turn);
            } else {
                more = fill(&mut list, turn);
            }
            assert!(rise(&more) && ids.last() < more.first());
            ids.extend(more);
            let mut now = list.take();
            assert!(list.is_empty());
            if now.next < now.end {
                ids.push(now.push(0)); // the rest of the block moved along
            }
            taken.append(&mut now);
            check(&taken);
        }
        assert!(rise(&ids));
        assert!(taken.iter().map(|(id, _)| id).eq(ids.iter().copied()));
    });
}

#[test]
fn ids_go_on_rising_after_an_append() {
    let (mut newer, mut ids) = filled(3);
    let mut older = newer.take();
    older.append(&mut newer); // which is empty
    older.append(&mut HandlerList::new());
    check(&older);
    ids.extend([older.push(3), newer.push(4)]);
    older.append(&mut newer);
    ids.extend([newer.push(5), older.push(6)]);
    let distinct: HashSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
    assert!(ids[5..].iter().all(|id| *id > ids[4]));
    check(&older);
}

/// Each gap in the ids means that a share was taken.
#[test]
fn appending_by_turns_seldom_takes_a_share() {
    with_another_thread(|there| {
        let (mut list, mut ids) = (HandlerList::new(), Vec::new());
        for n in 0..5_000 {
            ids.push(list.push(n));
            let more;
            (list, more) = there(list, 2); // each thread reaches the end of a block from time to time
            ids.extend(more);
        }
        let gaps = ids.windows(2).filter(|pair| pair[1].0 != pair[0].0 + 1).count();
        assert!(gaps <= 2, "{gaps} gaps");
    });
}

#[test]
fn lists_from_another_thread_seldom_take_shares() {
    let count = usize::try_from(BLOCK).unwrap();
    with_another_thread(|there| {
        let mut shares = HashSet::new();
        for _ in 0..500 {
            let (mut list, ids) = there(HandlerList::new(), count);
            shares.insert(ids[0].0 / SHARE);
            shares.insert(list.push(0).0 / SHARE);
        }
        assert!(shares.len() <= 4, "{} shares", shares.len());
    });
}

#[test]
fn ids_that_are_unknown_are_in_no_list() {
    let (mut list, ids) = filled(100);
    let unknown = [HandlerId::unknown(), HandlerId::unknown()];
    let later = fill(&mut list, 100);
    let distinct: HashSet<_> = ids.iter().chain(&unknown).chain(&later).collect();
    assert_eq!(distinct.len(), 202);
    assert!(unknown.iter().all(|id| list.get(*id).is_none()));
}

// ---------------------------------------------------------------------------------------------------------------------
// Everything together

#[derive(Clone, Debug)]
enum Op {
    Push(u8),
    Pop,
    PopTo,
    TakeOut(usize),
    Remove(usize),
    TakeOutIf(u8, usize),
    FindAndRemove(u8),
    Exchange(usize),
    Reserve(usize),
    Release,
    Clear,
    TakeAndAppend(u8),
    Consume,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => (1..40_u8).prop_map(Op::Push),
        2 => Just(Op::Pop),
        2 => Just(Op::PopTo),
        8 => any::<usize>().prop_map(Op::TakeOut),
        4 => any::<usize>().prop_map(Op::Remove),
        2 => (1..5_u8, 0..20_usize).prop_map(|(step, room)| Op::TakeOutIf(step, room)),
        2 => (1..5_u8).prop_map(Op::FindAndRemove),
        6 => (0..200_usize).prop_map(Op::Exchange),
        2 => (0..50_usize).prop_map(Op::Reserve),
        2 => Just(Op::Release),
        1 => Just(Op::Clear),
        2 => (0..20_u8).prop_map(Op::TakeAndAppend),
        1 => Just(Op::Consume),
    ];
    vec(op, 0..100)
}

/// The second field is `None` once the value has been consumed, as by a handler that ran.
type Value = (usize, Option<Rc<()>>);

fn found(model: &mut Vec<(HandlerId, usize)>, step: u8) -> Vec<usize> {
    let (found, left) = model.drain(..).partition(|(_, n)| n % usize::from(step) == 0);
    *model = left;
    found.into_iter().map(|(_, n): (HandlerId, usize)| n).collect()
}

proptest! {
    /// After any sequence of operations, the list holds what a `Vec` would, and each value is dropped once.
    #[test]
    fn a_list_is_a_vec_of_ids_and_values(ops in ops()) {
        let alive = Rc::new(());
        let (mut list, mut model) = (HandlerList::<Value>::new(), Vec::new());
        let mut made = 0;
        let mut last = None;
        for op in ops {
            let mut push = |list: &mut HandlerList<Value>, model: &mut Vec<_>| {
                let id = list.push((made, Some(Rc::clone(&alive))));
                model.push((id, made));
                made += 1;
                id
            };
            match op {
                Op::Push(count) => for _ in 0..count {
                    let id = push(&mut list, &mut model);
                    prop_assert!(last < Some(id));
                    last = Some(id);
                },
                Op::Pop => prop_assert_eq!(list.pop().map(|(id, (n, _))| (id, n)), model.pop()),
                Op::PopTo => {
                    let mut place = None;
                    list.pop_to(&mut place);
                    prop_assert_eq!(place.map(|(n, _)| n), model.pop().map(|(_, n)| n));
                }
                Op::TakeOut(at) | Op::Remove(at) if !model.is_empty() => {
                    let (id, n) = model.remove(at % model.len());
                    prop_assert_eq!(list.get(id).map(|(n, _)| *n), Some(n));
                    let value = if matches!(op, Op::Remove(_)) { list.remove(id) } else { list.take_out(id) };
                    prop_assert_eq!(value.map(|(n, _)| n), Some(n));
                    prop_assert!(list.take_out(id).is_none() && list.get(id).is_none());
                }
                Op::TakeOut(_) | Op::Remove(_) => {}
                Op::TakeOutIf(step, room) => {
                    let mut out = Found::with_capacity(room);
                    let matches = |(n, _): &Value| n % usize::from(step) == 0;
                    if let Err(count) = list.take_out_if(&mut out, matches) {
                        prop_assert!(out.is_empty() && count > out.capacity());
                        out.reserve(count);
                        prop_assert_eq!(list.take_out_if(&mut out, matches), Ok(()));
                    }
                    let out: Vec<usize> = out.into_iter().map(|(n, _)| n).collect();
                    prop_assert_eq!(out, found(&mut model, step));
                }
                Op::FindAndRemove(step) => {
                    let out = list.find_and_remove(|(n, _)| n % usize::from(step) == 0);
                    let out: Vec<usize> = out.into_iter().map(|(n, _)| n).collect();
                    prop_assert_eq!(out, found(&mut model, step));
                }
                Op::Exchange(capacity) => list.exchange(&mut Storage::with_capacity(capacity)),
                Op::Reserve(additional) => {
                    list.reserve(additional);
                    prop_assert!(list.wanted(additional).is_none());
                }
                Op::Release => drop(list.release()),
                Op::Clear => {
                    let out: Vec<usize> = list.clear().into_iter().map(|(n, _)| n).collect();
                    prop_assert!(out.into_iter().eq(model.drain(..).map(|(_, n)| n)));
                    prop_assert!(list.is_bare());
                }
                Op::TakeAndAppend(count) => {
                    let mut older = list.take();
                    prop_assert!(list.is_bare());
                    for _ in 0..count {
                        last = Some(push(&mut list, &mut model));
                    }
                    older.append(&mut list);
                    list = older;
                }
                Op::Consume => {
                    for (value, expected) in list.newest_first().zip(model.drain(..).rev()) {
                        prop_assert_eq!(value.0, expected.1);
                        value.1 = None;
                    }
                    list.forget_all();
                    prop_assert!(list.is_bare());
                }
            }
            check(&list);
            prop_assert_eq!((list.len(), list.is_empty()), (model.len(), model.is_empty()));
            prop_assert!(list.iter().map(|(id, (n, _))| (id, *n)).eq(model.iter().copied()));
            prop_assert_eq!(Rc::strong_count(&alive) - 1, model.len());
        }
        drop(list);
        prop_assert_eq!(Rc::strong_count(&alive), 1);
    }
}

#[test]
fn lists_of_single_ids_and_of_blocks_share_none() {
    let ids = || {
        let (mut here, mut anywhere) = (HandlerList::new(), HandlerList::new());
        let mut ids = Vec::new();
        for round in 0..2 * SHARE {
            ids.push(push_here(&mut here, ()));
            if round % 3 == 0 {
                ids.push(anywhere.push(()));
            }
        }
        assert!(here.iter().map(|(id, ())| id).is_sorted());
        assert!(anywhere.iter().map(|(id, ())| id).is_sorted());
        ids
    };
    // Past the ends of several shares.
    let mut all = std::thread::scope(|scope| {
        let threads = [scope.spawn(ids), scope.spawn(ids)];
        threads.map(|thread| thread.join().unwrap()).concat()
    });
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
}

#[test]
fn no_block_crosses_the_end_of_a_share() {
    let thread = std::thread::spawn(|| {
        let mut here = HandlerList::new();
        while push_here(&mut here, ()).0 % SHARE != SHARE - BLOCK / 2 {}
        let id = HandlerList::new().push(());
        assert_eq!(id.0 % SHARE, 0, "the first of a new share");
    });
    thread.join().unwrap();
}
