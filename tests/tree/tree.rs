//! An interpreter's position among its parent's handlers, and what it leaves there.

use std::sync::Arc;

use exitstack::{Exit, ExitStack, Handler, Interpreter, process_stack};

use crate::{Log, messages, within_a_minute};

/// A parent, and a child positioned between two of its handlers.
fn parent_around_a_child(log: &Log) -> (Interpreter, Interpreter) {
    let parent = Interpreter::new("parent");
    parent.stack().register(log.handler("before"));
    let child = parent.subinterpreter("child");
    parent.stack().register(log.handler("after"));
    (parent, child)
}

/// The position is among the handlers of its parent.
#[test]
fn a_child_is_torn_down_at_its_place() {
    let log = Log::default();
    let (parent, child) = parent_around_a_child(&log);
    child.stack().register(log.handler("child 1"));
    child.stack().register(log.handler("child 2"));
    parent.finalize().unwrap();
    assert_eq!(log.take(), ["after", "child 2", "child 1", "before"]);
}

/// It does not matter when the child's handlers were registered.
#[test]
fn a_childs_place_is_where_it_was_made() {
    let log = Log::default();
    let parent = Interpreter::new("parent");
    let children: Vec<_> = (0..4)
        .map(|n| {
            parent.stack().register(log.handler(format!("before {n}")));
            parent.subinterpreter(format!("{n}"))
        })
        .collect();
    parent.stack().register(log.handler("newest"));
    for n in [2, 0, 3, 1] {
        children[n].stack().register(log.handler(format!("in {n}")));
    }
    parent.finalize().unwrap();
    let expected =
        ["newest", "in 3", "before 3", "in 2", "before 2", "in 1", "before 1", "in 0", "before 0"].map(str::to_owned);
    assert_eq!(log.take(), expected);
}

#[test]
fn a_new_interpreters_parent_is_the_process() {
    let child = Interpreter::new("of the process");
    let error = {
        child.stack().register(|| Err("seen"));
        child.finalize().unwrap_err()
    };
    assert_eq!(error.errors()[0].path(), Some("process > of the process"));
}

/// A chain of interpreters, outermost first, each with one handler before the next interpreter and one after it.
fn chain(depth: usize, log: &Log) -> Vec<Interpreter> {
    let mut chain: Vec<Interpreter> = Vec::with_capacity(depth);
    for n in 0..depth {
        let next = chain.last().map_or_else(|| Interpreter::new("0"), |outer| outer.subinterpreter(n.to_string()));
        if let Some(outer) = chain.last() {
            outer.stack().register(log.handler(format!("after {}", n - 1)));
        }
        next.stack().register(log.handler(format!("before {n}")));
        chain.push(next);
    }
    chain
}

/// The log of a teardown of such a chain from its root.
fn from_the_root(depth: usize) -> Vec<String> {
    let down = (0..depth - 1).map(|n| format!("after {n}"));
    let up = (0..depth).rev().map(|n| format!("before {n}"));
    down.chain(up).collect()
}

const DEPTHS: [usize; 3] = [3, 1000, 10_000];

/// In order, and without recursion.
#[test]
fn a_deep_tree_is_torn_down_from_the_root() {
    within_a_minute(|| {
        for depth in DEPTHS {
            let log = Log::default();
            let chain = chain(depth, &log);
            chain[0].finalize().unwrap();
            assert_eq!(log.take(), from_the_root(depth));
            drop(chain);
            assert!(log.take().is_empty());
        }
    });
}

/// In order, and without recursion.
#[test]
fn a_deep_tree_may_be_dropped_outermost_first() {
    within_a_minute(|| {
        for depth in DEPTHS {
            let log = Log::default();
            let mut handles = chain(depth, &log).into_iter();
            drop(handles.next());
            assert_eq!(log.take(), from_the_root(depth));
            handles.for_each(drop);
            assert!(log.take().is_empty());
        }
    });
}

/// In order, and without recursion.
#[test]
fn a_deep_tree_may_be_dropped_innermost_first() {
    within_a_minute(|| {
        for depth in DEPTHS {
            let log = Log::default();
            chain(depth, &log).into_iter().rev().for_each(drop);
            let each = |n: usize| {
                let after = (n + 1 < depth).then(|| format!("after {n}"));
                after.into_iter().chain([format!("before {n}")])
            };
            assert_eq!(log.take(), (0..depth).rev().flat_map(each).collect::<Vec<_>>());
        }
    });
}

/// All the other handles are gone. There is no recursion.
#[test]
fn the_innermost_handle_alone_ends_a_deep_tree() {
    within_a_minute(|| {
        for depth in [3, 100_000] {
            let mut innermost = Interpreter::new("0");
            for n in 1..depth {
                // Dropping the outer handle finalizes the new interpreter as well, so that only the path of the outer
                // ones remains.
                innermost = innermost.subinterpreter(n.to_string());
            }
            assert!(innermost.stack().try_register(|| ()).is_err());
            drop(innermost);
        }
    });
}

/// Failures are returned in order.
#[test]
fn failures_at_any_depth_come_back_with_paths() {
    within_a_minute(|| {
        let log = Log::default();
        let chain = chain(100, &log);
        for (n, interpreter) in chain.iter().enumerate() {
            interpreter.stack().register(move || Err(n.to_string()));
        }
        let result = chain[0].finalize();
        assert_eq!(messages(&result), (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
        let paths: Vec<usize> =
            result.unwrap_err().iter().map(|error| error.path().unwrap().split(" > ").count() - 1).collect();
        assert_eq!(paths, (1..=100).collect::<Vec<_>>());
    });
}

#[test]
fn an_early_finalize_leaves_nothing_in_a_parent() {
    let log = Log::default();
    let (parent, child) = parent_around_a_child(&log);
    let alive = Arc::new(());
    let captured = Arc::clone(&alive);
    child.stack().register(log.handler("child"));
    child.stack().register(move || drop(captured));
    child.finalize().unwrap();
    assert_eq!(log.take(), ["child"]);
    assert_eq!(Arc::strong_count(&alive), 1);
    drop(child);
    assert_eq!(parent.stack().len(), 2);
    parent.finalize().unwrap();
    assert_eq!(log.take(), ["after", "before"]);
}

#[test]
fn a_second_finalize_is_ok_and_runs_nothing() {
    let log = Log::default();
    let child = Interpreter::new("child");
    child.stack().register(log.handler("once"));
    child.stack().register(|| Err("once"));
    assert!(child.finalize().is_err());
    assert!(child.finalize().is_ok());
    assert!(child.stack().close().is_ok());
    drop(child);
    assert_eq!(log.take(), ["once"]);
}

/// Closing an interpreter's stack runs its handlers, but does not finalize the interpreter.
#[test]
fn a_closed_stack_stays_usable_at_its_place() {
    let log = Log::default();
    let (parent, child) = parent_around_a_child(&log);
    child.stack().register(log.handler("first"));
    child.stack().close().unwrap();
    assert_eq!(log.take(), ["first"]);
    child.stack().register(log.handler("second"));
    parent.finalize().unwrap();
    assert_eq!(log.take(), ["after", "second", "before"]);
}

/// The parent itself remains usable.
#[test]
fn closing_a_parents_stack_finalizes_children() {
    let log = Log::default();
    let parent = Interpreter::new("parent");
    let child = parent.subinterpreter("child");
    child.stack().register(log.handler("child"));
    parent.stack().close().unwrap();
    assert!(child.stack().try_register(|| ()).is_err());
    parent.stack().register(log.handler("parent"));
    let second = parent.subinterpreter("second");
    second.stack().register(log.handler("second"));
    parent.finalize().unwrap();
    assert_eq!(log.take(), ["child", "second", "parent"]);
}

/// A parent and its child, with one handler each.
fn parent_and_child(log: &Log) -> (Interpreter, Interpreter) {
    let parent = Interpreter::new("parent");
    parent.stack().register(log.handler("parent"));
    let child = parent.subinterpreter("child");
    child.stack().register(log.handler("child"));
    (parent, child)
}

/// Registers a handler in `here` that registers another one, "late", in `there`.
fn registers_in(there: &Interpreter, here: &Interpreter, log: &Log) {
    let (there, late) = (there.clone(), log.handler("late"));
    here.stack().register(move || _ = there.stack().register(late));
}

/// A handler of the child registers while only the child drains.
#[test]
fn a_draining_child_may_register_on_its_parent() {
    let log = Log::default();
    let (parent, child) = parent_and_child(&log);
    registers_in(&parent, &child, &log);
    child.finalize().unwrap();
    assert_eq!(log.take(), ["child"]);
    parent.finalize().unwrap();
    assert_eq!(log.take(), ["late", "parent"]);
}

/// A handler of the child registers while the parent drains.
#[test]
fn a_child_may_register_on_a_draining_parent() {
    let log = Log::default();
    let (parent, child) = parent_and_child(&log);
    registers_in(&parent, &child, &log);
    parent.finalize().unwrap();
    assert_eq!(log.take(), ["child", "late", "parent"]);
}

/// A handler of the parent registers while the parent drains.
#[test]
fn a_draining_parent_may_register_on_its_child() {
    let log = Log::default();
    let (parent, child) = parent_and_child(&log);
    registers_in(&child, &parent, &log);
    parent.finalize().unwrap();
    assert_eq!(log.take(), ["late", "child", "parent"]);
}

/// The calls come from a handler of the child, while the parent drains.
#[test]
fn a_child_may_finalize_a_sibling_and_the_parent() {
    let log = Log::default();
    let parent = Interpreter::new("parent");
    let sibling = parent.subinterpreter("sibling");
    sibling.stack().register(log.handler("sibling"));
    let child = parent.subinterpreter("child");
    child.stack().register(log.handler("child 1"));
    let (outer, inner, then) = (parent.clone(), sibling.clone(), log.handler("child 2"));
    child.stack().register(move || {
        inner.finalize().unwrap();
        outer.finalize().unwrap(); // the drain that is running this handler
        then();
    });
    parent.finalize().unwrap();
    assert_eq!(log.take(), ["sibling", "child 2", "child 1"]);
}

/// The rest of its own interpreter runs at its position.
#[test]
fn a_handler_may_finalize_what_it_is_nested_in() {
    let log = Log::default();
    let root = Interpreter::new("root");
    root.stack().register(log.handler("root, old"));
    let parent = root.subinterpreter("parent");
    parent.stack().register(log.handler("parent, old"));
    let child = parent.subinterpreter("child");
    child.stack().register(|| Err("child's"));
    child.stack().register(log.handler("child, old"));
    let (outer, then) = (root.clone(), log.clone());
    child.stack().register(move || {
        assert_eq!(messages(&outer.finalize()), ["child's"]);
        then.push("child, new");
    });
    root.stack().register(log.handler("root, new"));
    assert_eq!(messages(&child.finalize()), ["child's"]);
    assert_eq!(log.take(), ["root, new", "child, old", "parent, old", "root, old", "child, new"]);
    assert!([&root, &parent, &child].iter().all(|done| done.stack().try_register(|| ()).is_err()));
}

/// The same status was merged into an inner drain before; the second request still counts.
#[test]
fn a_status_requested_again_is_the_last() {
    let outer = Interpreter::new("outer");
    let parent = outer.subinterpreter("parent");
    parent.stack().register(|| Err(Exit(7)));
    let child = parent.subinterpreter("child");
    let around = outer.clone();
    child.stack().register(move || {
        assert_eq!(around.finalize().unwrap_err().exit_code(), Some(7));
        Err(Exit(5))
    });
    child.stack().register(|| Err(Exit(5)));
    assert_eq!(parent.finalize().unwrap_err().exit_code(), Some(5));
}

/// The earlier status was merged into an inner drain already, and must not be merged again over the later one.
#[test]
fn a_status_is_not_handed_on_over_a_later_one() {
    let outer = Interpreter::new("outer");
    let parent = outer.subinterpreter("parent");
    parent.stack().register(|| Err(Exit(7)));
    let child = parent.subinterpreter("child");
    let around = outer.clone();
    child.stack().register(move || assert_eq!(around.finalize().unwrap_err().exit_code(), Some(7)));
    child.stack().register(|| Err(Exit(5)));
    assert_eq!(parent.finalize().unwrap_err().exit_code(), Some(7));
}

#[test]
fn nested_failures_are_listed_as_they_happened() {
    let outer = Interpreter::new("outer");
    outer.stack().register(|| Err("third"));
    let inner = outer.subinterpreter("inner");
    outer.stack().register(|| Err("second"));
    let around = outer.clone();
    inner.stack().register(move || {
        assert_eq!(messages(&around.stack().close()), ["first", "second", "third"]);
    });
    inner.stack().register(|| Err("first"));
    assert_eq!(messages(&inner.finalize()), ["first"]);
}

#[test]
fn the_last_status_of_nested_drains_wins() {
    let outer = Interpreter::new("outer");
    let inner = outer.subinterpreter("inner");
    outer.stack().register(|| {
        let mut local = ExitStack::new();
        local.register(|| Err(Exit(1)));
        local.close()
    });
    let around = outer.clone();
    inner.stack().register(move || {
        assert_eq!(around.stack().close().unwrap_err().exit_code(), Some(1));
    });
    inner.stack().register(|| Err(Exit(11)));
    assert_eq!(messages(&inner.finalize()), Vec::<String>::new());
}

/// The call returns at once, and the drain continues.
#[test]
fn finalize_inside_its_own_handler_is_ok() {
    let log = Log::default();
    let interpreter = Interpreter::new("own");
    interpreter.stack().register(log.handler("old"));
    let (own, then) = (interpreter.clone(), log.handler("new"));
    interpreter.stack().register(move || {
        assert!(own.finalize().is_ok());
        then();
    });
    interpreter.finalize().unwrap();
    assert_eq!(log.take(), ["new", "old"]);
}

#[test]
fn finalize_inside_a_close_makes_it_the_last() {
    let log = Log::default();
    let interpreter = Interpreter::new("own");
    interpreter.stack().register(log.handler("old"));
    let own = interpreter.clone();
    interpreter.stack().register(move || own.finalize().unwrap());
    interpreter.stack().close().unwrap();
    assert_eq!(log.take(), ["old"]);
    assert!(interpreter.stack().try_register(|| ()).is_err());
}

/// A handler of the parent creates it.
#[test]
fn a_child_made_in_a_drain_is_torn_down_next() {
    let log = Log::default();
    let parent = Interpreter::new("parent");
    parent.stack().register(log.handler("old"));
    let (outer, inside) = (parent.clone(), log.clone());
    let (keep, kept) = std::sync::mpsc::channel();
    parent.stack().register(move || {
        let child = outer.subinterpreter("late");
        child.stack().register(inside.handler("late child"));
        outer.stack().register(inside.handler("late"));
        keep.send(child).unwrap(); // keeps it alive
    });
    parent.finalize().unwrap();
    assert_eq!(log.take(), ["late", "late child", "old"]);
    assert!(kept.recv().is_ok());
}

/// One of the children was finalized earlier; every one of them is tried.
#[test]
fn children_are_torn_down_newest_first() {
    const CHILDREN: usize = 7;
    for gone in 0..CHILDREN {
        let log = Log::default();
        let parent = Interpreter::new("parent");
        let child = |n: usize| {
            let child = parent.subinterpreter(n.to_string());
            child.stack().register(log.handler(n.to_string()));
            child
        };
        let mut children: Vec<_> = (0..CHILDREN).map(child).collect();
        children.remove(gone).finalize().unwrap();
        children.push(child(CHILDREN));
        parent.finalize().unwrap();
        let rest = (0..=CHILDREN).rev().filter(|n| *n != gone);
        let expected: Vec<_> = [gone].into_iter().chain(rest).map(|n| n.to_string()).collect();
        assert_eq!(log.take(), expected);
    }
}

/// A handler closes its own interpreter while the interpreter is being finalized.
#[test]
fn a_close_in_the_last_drain_leaves_it_finalized() {
    let interpreter = Interpreter::new("closed");
    let own = interpreter.clone();
    interpreter.stack().register(move || own.stack().close());
    interpreter.finalize().unwrap();
    assert!(interpreter.stack().try_register(|| ()).is_err());
}

#[test]
fn a_finalized_parents_child_takes_no_handlers() {
    let parent = Interpreter::new("parent");
    parent.finalize().unwrap();
    let child = parent.subinterpreter("child");
    assert!(child.stack().try_register(|| ()).is_err());
    assert!(child.finalize().is_ok());
}

#[test]
fn a_child_is_no_handler_of_its_parent() {
    fn function() {}
    let log = Log::default();
    let parent = Interpreter::new("parent");
    let child = parent.subinterpreter("child");
    let id = child.stack().register(log.handler("child"));
    child.stack().register(function);
    child.stack().register(Handler::new(log.handler("keyed")).keyed("key"));
    let stack = parent.stack();
    assert_eq!((stack.len(), stack.is_empty(), stack.pending().len()), (0, true, 0));
    assert!(!stack.unregister(id) && stack.run_now(id).is_none());
    assert_eq!((stack.unregister_fn(function), stack.unregister_key(&"key")), (0, 0));
    stack.clear();
    let moved = stack.pop_all();
    assert!(moved.close().is_ok());
    drop(moved);
    assert_eq!((log.take(), child.stack().len()), (vec![], 3));
    parent.finalize().unwrap();
    assert_eq!(log.take(), ["keyed", "child"]);
}

/// `pop_all` moves the parent's own handlers away.
#[test]
fn a_child_keeps_its_place_if_handlers_are_moved() {
    let log = Log::default();
    let parent = Interpreter::new("parent");
    parent.stack().register(log.handler("moved"));
    let child = parent.subinterpreter("child");
    child.stack().register(log.handler("child"));
    let moved = parent.stack().pop_all();
    parent.stack().register(log.handler("after"));
    parent.finalize().unwrap();
    assert_eq!(log.take(), ["after", "child"]);
    drop(moved);
    assert_eq!(log.take(), ["moved"]);
}

#[test]
fn an_interpreters_id_is_unknown_in_the_others() {
    let parent = Interpreter::new("parent");
    let others = [parent.subinterpreter("a"), parent.subinterpreter("b"), parent.subinterpreter("a").clone()];
    let ids: Vec<_> = others.iter().map(|other| other.stack().register(|| ())).collect();
    for (n, other) in others.iter().enumerate().take(2) {
        for (m, id) in ids.iter().enumerate() {
            assert!(n == m || !other.stack().unregister(*id));
        }
    }
    assert!(ids.iter().all(|id| !process_stack().unregister(*id)));
    assert_eq!(others[0].stack().len(), 1);
}

/// Clones are handles to the same interpreter.
#[test]
fn the_last_of_an_interpreters_clones_finalizes() {
    let log = Log::default();
    let first = Interpreter::new("same");
    let second = first.clone();
    assert_eq!(first, second);
    assert_ne!(first, Interpreter::new("same"));
    first.stack().register(log.handler("once"));
    drop(first);
    assert_eq!((log.take(), second.stack().len()), (vec![], 1));
    drop(second);
    assert_eq!(log.take(), ["once"]);
}
