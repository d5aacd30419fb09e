//! `HandlerList` by itself.

use std::collections::BTreeMap;

use exitstack::{HandlerId, HandlerList};
use proptest::collection::vec;
use proptest::prelude::*;

#[test]
fn ids_rise_and_are_unknown_to_every_other_list() {
    let mut lists = [HandlerList::new(), HandlerList::new(), HandlerList::new()];
    let mut ids: Vec<Vec<HandlerId>> = vec![Vec::new(); 3];
    for n in 0..300 {
        ids[n % 3].push(lists[n % 3].push(n));
    }
    for (of, ids) in ids.into_iter().enumerate() {
        assert!(ids.is_sorted_by(|a, b| a < b));
        for id in ids {
            for other in (0..3).filter(|other| *other != of) {
                assert_eq!(lists[other].get(id), None);
                assert_eq!(lists[other].remove(id), None);
            }
        }
    }
    assert!(lists.iter().all(|list| list.len() == 100));
}

#[test]
fn an_id_is_not_used_again() {
    let mut list = HandlerList::new();
    let mut seen = std::collections::HashSet::new();
    for round in 0..100 {
        for n in 0..20 {
            assert!(seen.insert(list.push(n)));
        }
        match round % 3 {
            0 => drop(list.clear()),
            1 => while list.pop().is_some() {},
            _ => list = HandlerList::new(),
        }
    }
}

/// The list can be used again, and never reuses an id.
#[test]
fn clear_returns_the_values_oldest_first() {
    let mut list = HandlerList::new();
    let ids: Vec<HandlerId> = (0..10).map(|n| list.push(n)).collect();
    assert_eq!(list.remove(ids[4]), Some(4));
    assert_eq!(list.clear(), [0, 1, 2, 3, 5, 6, 7, 8, 9]);
    assert!(list.is_empty());
    assert!(ids.iter().all(|id| list.get(*id).is_none()));
    assert!(list.push(10) > ids[9]);
}

#[test]
fn remove_if_asks_once_and_returns_oldest_first() {
    for count in [0, 1, 4, 5, 100] {
        let mut list = HandlerList::new();
        let ids: Vec<HandlerId> = (0..count).map(|n| list.push(n)).collect();
        let mut asked = Vec::new();
        let removed = list.remove_if(|n| {
            asked.push(*n);
            n % 3 == 0
        });
        assert!(asked.into_iter().eq(0..count));
        assert!(removed.into_iter().eq((0..count).step_by(3)));
        for (n, id) in (0..count).zip(ids) {
            assert_eq!(list.get(id), (n % 3 != 0).then_some(&n));
        }
        assert!(list.remove_if(|n| n % 3 == 0).is_empty());
    }
}

#[test]
fn remove_if_that_panics_removes_nothing() {
    let counter = crate::support::Counter::default();
    let mut list = HandlerList::new();
    for n in 0..9 {
        list.push((n, counter.bomb()));
    }
    let remove = || drop(list.remove_if(|(n, _)| if *n == 7 { panic!("foreign") } else { true }));
    assert_eq!(crate::panicking::panic_of(remove), "foreign");
    assert_eq!((list.len(), counter.dropped()), (9, 0));
    assert!(list.remove_if(|_| true).into_iter().map(|(n, _)| n).eq(0..9));
}

/// The iterator also knows how many values are left.
#[test]
fn a_list_iterates_from_both_ends() {
    let mut list = HandlerList::new();
    let ids: Vec<HandlerId> = (0..6).map(|n| list.push(n)).collect();
    assert_eq!(list.remove(ids[2]), Some(2));
    let mut iter = list.iter();
    assert_eq!((iter.len(), iter.next()), (5, Some((ids[0], &0))));
    assert_eq!((iter.len(), iter.next_back()), (4, Some((ids[5], &5))));
    assert_eq!(iter.by_ref().map(|(_, n)| *n).collect::<Vec<_>>(), [1, 3, 4]);
    assert_eq!((iter.len(), iter.next(), iter.next_back()), (0, None, None));
    assert_eq!((&list).into_iter().count(), 5);
}

#[test]
fn values_are_dropped_once_with_their_list() {
    let counter = crate::support::Counter::default();
    for count in [0, 1, 4, 5, 40] {
        let before = counter.dropped();
        let mut list = HandlerList::new();
        let ids: Vec<HandlerId> = (0..count).map(|_| list.push(counter.bomb())).collect();
        for id in ids.iter().step_by(3) {
            drop(list.remove(*id));
        }
        drop(list.pop());
        drop(list);
        assert_eq!(counter.dropped() - before, count);
    }
}

/// The list may have shrunk to any size, and may have lost values at either end.
#[test]
fn the_rest_of_a_larger_list_is_dropped_with_it() {
    let counter = crate::support::Counter::default();
    for (popped, removed, popped_again) in
        (0..=20).flat_map(|a| (0..=20).flat_map(move |b| (0..=20).map(move |c| (a, b, c))))
    {
        let before = counter.dropped();
        let mut list = HandlerList::new();
        let ids: Vec<HandlerId> = (0..24).map(|_| list.push(counter.bomb())).collect();
        (0..popped).for_each(|_| drop(list.pop()));
        ids[4..4 + removed].iter().for_each(|id| drop(list.remove(*id)));
        (0..popped_again).for_each(|_| drop(list.pop()));
        drop(list);
        assert_eq!(counter.dropped() - before, 24);
    }
}

#[test]
fn a_list_drops_all_though_a_drop_panics() {
    let counter = crate::support::Counter::default();
    let mut list = HandlerList::new();
    for n in 0..9 {
        list.push(if n == 3 { counter.bomb_that_panics() } else { counter.bomb() });
    }
    assert_eq!(crate::panicking::panic_of(|| drop(list)), "dropped");
    assert_eq!(counter.dropped(), 9);
}

#[derive(Clone, Debug)]
enum Op {
    Push,
    Pop,
    Remove(usize),
    RemoveIf(usize),
    Reserve(usize),
    TryReserve(usize),
    Clear,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    vec(
        prop_oneof![
            8 => Just(Op::Push),
            2 => Just(Op::Pop),
            8 => any::<usize>().prop_map(Op::Remove),
            1 => (2..6_usize).prop_map(Op::RemoveIf),
            1 => (0..50_usize).prop_map(Op::Reserve),
            1 => (0..50_usize).prop_map(Op::TryReserve),
            1 => Just(Op::Clear),
        ],
        0..200,
    )
}

proptest! {
    #[test]
    fn a_list_is_an_ordered_map_that_is_appended_to(ops in ops()) {
        let mut list = HandlerList::new();
        let mut model = BTreeMap::new();
        let mut ids = Vec::new();
        for (value, op) in ops.into_iter().enumerate() {
            match op {
                Op::Push => {
                    let id = list.push(value);
                    prop_assert!(ids.last() < Some(&id));
                    ids.push(id);
                    model.insert(id, value);
                }
                Op::Pop => prop_assert_eq!(list.pop(), model.pop_last()),
                Op::Remove(pick) if !ids.is_empty() => {
                    let id = ids[pick % ids.len()];
                    prop_assert_eq!(list.get(id), model.get(&id));
                    prop_assert_eq!(list.remove(id), model.remove(&id));
                }
                Op::Remove(_) => {}
                Op::RemoveIf(step) => {
                    let (out, left) = model.into_iter().partition(|(_, value)| value % step == 0);
                    model = left;
                    let out: BTreeMap<HandlerId, usize> = out;
                    prop_assert!(list.remove_if(|value| value % step == 0).into_iter().eq(out.into_values()));
                }
                Op::Reserve(additional) => list.reserve(additional),
                Op::TryReserve(additional) => prop_assert_eq!(list.try_reserve(additional), Ok(())),
                Op::Clear => {
                    prop_assert_eq!(list.clear(), model.values().copied().collect::<Vec<_>>());
                    model.clear();
                }
            }
            prop_assert_eq!(list.len(), model.len());
            prop_assert_eq!(list.is_empty(), model.is_empty());
            prop_assert!(list.iter().eq(model.iter().map(|(id, value)| (*id, value))));
            prop_assert!(list.iter().rev().eq(model.iter().rev().map(|(id, value)| (*id, value))));
        }
    }
}
