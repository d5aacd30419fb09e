//! How a forked child takes over what earlier processes registered.

use super::lifecycle::Lifecycle;
use super::{Child, SharedExitStack};
use crate::list::{HandlerId, HandlerList, Storage};

impl SharedExitStack {
    /// Takes over what earlier processes registered with this stack and with those nested in it. Returns false if some
    /// of that is out of reach.
    pub(crate) fn adopt(&self) -> bool {
        let mut all = self.adopt_own();
        self.visit_descendants(|node| all &= node.stack.adopt_own());
        all
    }

    fn adopt_own(&self) -> bool {
        let mut inherited = Vec::with_capacity(self.state.generations());
        let mut all = true;
        {
            let state = self.lock();
            let takes = !matches!(state.lifecycle, Lifecycle::Closed);
            for earlier in self.state.earlier() {
                match earlier {
                    // Another thread was changing it at the fork, so its content cannot be relied on.
                    None => all = false,
                    // A stack that accepts nothing cannot adopt anything: what was pending is out of reach.
                    Some(earlier) if !takes => all &= earlier.handlers.is_empty(),
                    // Only moved for now: positions are settled, and memory is allocated, while no lock is held.
                    Some(mut earlier) => inherited.push((earlier.handlers.take(), earlier.children.take())),
                }
            }
        }
        let (mut handlers, mut children) = (HandlerList::new(), HandlerList::new());
        for (mut its_handlers, mut its_children) in inherited {
            handlers.append(&mut its_handlers);
            children.append(&mut its_children);
        }
        let replaced = settle_positions(&mut children);
        let mut dropped = Vec::with_capacity(replaced.len());
        loop {
            let mut state = self.lock();
            // What this process has registered itself is newer, and so comes last.
            let wanted = (handlers.wanted(state.handlers.len()), children.wanted(state.children.len()));
            if wanted == (None, None) {
                dropped.extend(replaced.iter().filter_map(|id| state.children.take_out(*id)));
                std::mem::swap(&mut state.handlers, &mut handlers);
                state.handlers.append(&mut handlers);
                std::mem::swap(&mut state.children, &mut children);
                state.children.append(&mut children);
                return all;
            }
            drop(state);
            if let Some(capacity) = wanted.0 {
                handlers.exchange(&mut Storage::with_capacity(capacity));
            }
            if let Some(capacity) = wanted.1 {
                children.exchange(&mut Storage::with_capacity(capacity));
            }
        }
    }
}

/// Gives each inherited interpreter the first position that it had in any process. Returns the positions that it
/// replaces: those that this process has given to some of them since the fork.
fn settle_positions(inherited: &mut HandlerList<Child>) -> Vec<HandlerId> {
    let with_room = || Vec::with_capacity(inherited.len()); // so that nothing is allocated under a child's lock
    let (mut again, mut replaced) = (with_room(), with_room());
    for (id, child) in inherited.iter() {
        let mut own = child.node.stack.lock();
        match own.position {
            Some(position) if position < id => again.push(id),
            Some(position) => replaced.push(position),
            None => {}
        }
        own.position = Some(own.position.map_or(id, |position| position.min(id)));
    }
    for id in again {
        drop(inherited.remove(id));
    }
    inherited.newest_first().for_each(|child| child.skipped_by = None);
    replaced
}

#[cfg(all(test, not(all(loom, feature = "loom"))))]
mod tests {
    use std::sync::Arc;

    use super::super::wait_graph::ThreadKey;
    use super::super::{Node, Parent};
    use super::*;

    /// The thread that forked in a handler has the same key in the child, and drains anew.
    #[test]
    fn a_child_skips_nothing_that_its_parent_has_skipped() {
        let node = Node::new("interpreter".into(), Parent::None);
        let mut inherited = HandlerList::new();
        inherited.push(Child { node: Arc::clone(&node), skipped_by: Some(ThreadKey::current()) });
        assert!(settle_positions(&mut inherited).is_empty());
        assert_eq!(inherited.newest_first().next().unwrap().skipped_by, None);
        node.stack.lock().position = None;
    }
}
