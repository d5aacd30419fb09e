//! Isolation under load: each interpreter is compared with its own model.

use std::panic::resume_unwind;
use std::thread;

use exitstack::{Handler, HandlerId, Interpreter, PendingHandler};

use crate::{Log, Random, file_reports, message, messages, reports_of, within_a_minute};

const THREADS: usize = 8;
const EACH: usize = 8;
const STEPS: usize = 4000;

#[derive(Clone, Copy, PartialEq)]
enum Ends {
    Well,
    Failing,
    Panicking,
}

/// An interpreter and a `Vec` with what should be in it.
struct Modelled {
    name: String,
    interpreter: Interpreter,
    log: Log,
    pending: Vec<(HandlerId, String, Ends)>,
    gone: Vec<HandlerId>,
    made: usize,
}

impl Modelled {
    fn new(name: String, parent: &Interpreter) -> Self {
        let interpreter = parent.subinterpreter(name.clone());
        Self { name, interpreter, log: Log::default(), pending: Vec::new(), gone: Vec::new(), made: 0 }
    }

    fn register(&mut self, ends: Ends, through_current: bool) {
        let what = format!("{}.{}", self.name, self.made);
        self.made += 1;
        let (log, tag) = (self.log.clone(), what.clone());
        let name = self.name.clone();
        let handler = move || {
            log.push(tag.as_str());
            assert_eq!(Interpreter::current().unwrap().name(), name);
            match ends {
                Ends::Well => Ok(()),
                Ends::Failing => Err(tag),
                Ends::Panicking => resume_unwind(Box::new(tag)),
            }
        };
        let handler = Handler::new(handler).keyed(self.made % 5);
        let id = if through_current {
            self.interpreter.enter(|| exitstack::register(handler))
        } else {
            self.interpreter.stack().register(handler)
        };
        self.pending.push((id, what, ends));
    }

    /// Checks a drain, or the failures it returned, against the model.
    fn drained(&mut self, failures: &[String]) {
        let order: Vec<_> = self.pending.iter().rev().map(|(_, what, _)| what.clone()).collect();
        assert_eq!(self.log.take(), order);
        let failed = self.pending.iter().rev().filter(|(_, _, ends)| *ends != Ends::Well);
        assert_eq!(failures, failed.map(|(_, what, _)| what.clone()).collect::<Vec<_>>());
        self.gone.extend(self.pending.drain(..).map(|(id, _, _)| id));
        self.gone.truncate(100);
    }

    fn step(&mut self, random: &mut Random, parent: &Interpreter, foreign: Option<HandlerId>) {
        match random.below(24) {
            0..=7 => self.register(Ends::Well, false),
            8..=9 => self.register(Ends::Well, true),
            10..=11 => self.register(Ends::Failing, random.below(2) == 0),
            12..=13 => self.register(Ends::Panicking, random.below(2) == 0),
            14..=17 if !self.pending.is_empty() => {
                let (id, ..) = self.pending.remove(random.below(self.pending.len()));
                assert!(self.interpreter.stack().unregister(id));
                self.gone.push(id);
            }
            18 => {
                for id in self.gone.iter().copied().chain(foreign) {
                    assert!(!self.interpreter.stack().unregister(id));
                }
            }
            19 if !self.pending.is_empty() => {
                let (id, what, ends) = self.pending.remove(random.below(self.pending.len()));
                let result = self.interpreter.stack().run_now(id).unwrap();
                assert_eq!((self.log.take(), result.is_ok()), (vec![what], ends == Ends::Well));
            }
            20 => {
                self.interpreter.stack().clear();
                self.gone.extend(self.pending.drain(..).map(|(id, _, _)| id));
            }
            21 => {
                let result = self.interpreter.stack().close();
                self.drained(&messages(&result));
            }
            22 => {
                let result = self.interpreter.finalize();
                self.drained(&messages(&result));
                assert!(self.interpreter.stack().try_register(|| ()).is_err());
                self.interpreter = parent.subinterpreter(self.name.clone());
            }
            23 => {
                let before = reports_of(&self.name).len();
                let next = parent.subinterpreter(self.name.clone());
                drop(std::mem::replace(&mut self.interpreter, next));
                let reports = reports_of(&self.name);
                self.drained(&reports[before..].iter().map(message).collect::<Vec<_>>());
            }
            _ => {}
        }
        let ids = self.interpreter.stack().pending().iter().rev().map(PendingHandler::id).collect::<Vec<_>>();
        assert_eq!(ids, self.pending.iter().map(|(id, ..)| *id).collect::<Vec<_>>());
    }
}

/// Sixty-four interpreters on eight threads.
#[test]
fn interpreters_under_load_do_as_their_models_do() {
    file_reports();
    within_a_minute(|| {
        let root = Interpreter::new("load");
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let root = &root;
                scope.spawn(move || {
                    let mut random = crate::random(thread);
                    let mut all: Vec<_> =
                        (0..EACH).map(|n| Modelled::new(format!("load-{thread}-{n}-"), root)).collect();
                    for _ in 0..STEPS {
                        let chosen = random.below(EACH);
                        let foreign = all[(chosen + 1) % EACH].pending.last().map(|(id, ..)| *id);
                        all[chosen].step(&mut random, root, foreign);
                    }
                    for modelled in &mut all {
                        let result = modelled.interpreter.finalize();
                        modelled.drained(&messages(&result));
                    }
                });
            }
        });
        assert!(root.finalize().is_ok(), "nothing is left in it");
    });
}
