//! `HandlerList`.

use alloc::vec::Vec;

use exitstack::HandlerList;

#[test]
fn a_list_gives_back_what_it_was_given() {
    let mut list = HandlerList::new();
    let ids: Vec<_> = (0..100).map(|n| list.push(n)).collect();
    assert!(ids.is_sorted());
    assert_eq!(list.get(ids[7]), Some(&7));
    assert_eq!((list.remove(ids[7]), list.remove(ids[7])), (Some(7), None));
    assert_eq!(list.pop(), Some((ids[99], 99)));
    assert_eq!(list.remove_if(|n| n % 2 == 1).len(), 48);
    assert!(list.iter().map(|(_, n)| *n).eq((0..99).filter(|n| n % 2 == 0)));
    assert_eq!((list.clear().len(), list.len()), (50, 0));
}

#[test]
fn an_id_of_one_list_is_unknown_in_another() {
    let (mut a, mut b) = (HandlerList::new(), HandlerList::new());
    let (of_a, of_b) = (a.push('a'), b.push('b'));
    assert_eq!((a.get(of_b), b.get(of_a)), (None, None));
    assert_eq!((a.remove(of_b), b.remove(of_a)), (None, None));
}

#[test]
fn too_much_room_is_refused() {
    let mut list = HandlerList::new();
    list.push(1);
    assert!(list.try_reserve(usize::MAX).is_err() && list.try_reserve(100).is_ok());
    assert_eq!(list.len(), 1);
}
