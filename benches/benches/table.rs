//! Runs the other benchmarks and prints their results as one table, next to the limits that the project has set itself.
//!
//! With `--counts`, measures only what a busy machine cannot change: instructions, allocations and bytes. In that case,
//! exceeding a limit is an error.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

/// Where the benchmarks put their results.
const RESULTS: &str = env!("CARGO_TARGET_TMPDIR");

/// How often `instructions.rs` runs each case.
const ROUNDS: f64 = 100.0;

struct Row {
    work: &'static str,
    against: &'static str,
    measured: String,
    /// What the limit applies to: a ratio, or the number itself.
    value: f64,
    bar: Option<f64>,
}

impl Row {
    fn over(&self) -> bool {
        self.bar.is_some_and(|bar| self.value > bar)
    }

    fn print(&self) {
        let Self { work, against, measured, value, .. } = self;
        let bar = self.bar.map_or("-".to_owned(), number);
        let verdict = match self.bar {
            None => "",
            Some(_) if self.over() => "OVER",
            Some(_) => "ok",
        };
        println!("| {work} | {against} | {measured} | {} | {bar} | {verdict} |", number(*value));
    }
}

/// At most three significant digits after rounding.
fn number(value: f64) -> String {
    match value {
        _ if value == value.round() => format!("{value}"),
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.5}"),
    }
}

fn main() -> ExitCode {
    let counts_only = env::args().any(|argument| argument == "--counts");
    let mut rows = instructions();
    rows.extend(memory());
    if !counts_only {
        rows.extend(time());
    }
    println!("| work | against | measured | ratio or number | at most | |");
    println!("| --- | --- | --- | ---: | ---: | --- |");
    rows.iter().for_each(Row::print);
    if !counts_only {
        println!();
        print!("{}", bench("growth", &[]));
    }
    let over = rows.iter().filter(|row| row.over()).count();
    eprintln!("{} rows, {over} over the bar", rows.len());
    if counts_only && over > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs another benchmark of this package and returns what it prints.
fn bench(name: &str, arguments: &[&str]) -> String {
    let cargo = env::var_os("CARGO").unwrap_or("cargo".into());
    let mut command = Command::new(cargo);
    command.args(["bench", "--quiet", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
    command.args(["--bench", name, "--"]).args(arguments).stderr(Stdio::inherit());
    command.env("CRITERION_HOME", results("criterion")).env("GUNGRAUN_HOME", results("gungraun"));
    let output = command.output().expect("cargo runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "the benchmark {name} failed:\n{printed}");
    printed
}

fn results(of: &str) -> PathBuf {
    Path::new(RESULTS).join(of)
}

/// Removes earlier results, so that they are not taken for new ones.
fn forget_results(of: &str) {
    let _ = fs::remove_dir_all(results(of));
}

/// Whether a program can be run.
fn has(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

// ---------------------------------------------------------------------------------------------------------------------
// Instructions

fn instructions() -> Vec<Row> {
    let runner = env::var("GUNGRAUN_RUNNER").unwrap_or("gungraun-runner".to_owned());
    for needed in ["valgrind", &*runner] {
        if !has(needed) {
            eprintln!("skipped the counts of instructions: no {needed}");
            return Vec::new();
        }
    }
    forget_results("gungraun");
    bench("instructions", &[]);
    let count = |case: &str| (total(case) - total("nothing")) / ROUNDS;
    // The number itself, shown next to that of the other way.
    let row = |work, against, case: &str, theirs: &str, bar| {
        let (value, theirs) = (count(case), count(theirs));
        let measured = format!("{value:.0} : {theirs:.0}, or {:.2}", value / theirs);
        Row { work, against, measured, value, bar: Some(bar) }
    };
    let alone =
        |work, case, bar| Row { work, against: "", measured: String::new(), value: count(case), bar: Some(bar) };
    let [stack, guards] = ["three_on_a_stack", "three_as_guards"];
    vec![
        row("1 handler, instructions", "boxes", "stack.h1", "boxes.h1", 172.0),
        row("3 handlers, instructions", "boxes", "stack.h3", "boxes.h3", 285.0),
        row("8 handlers, instructions", "boxes", "stack.h8", "boxes.h8", 800.0),
        alone("an empty `ExitStack`, instructions", "none", 14.0),
        row("3 handlers written out, instructions", "three scopeguards", stack, guards, 255.0),
        row("the same", "an array of three", stack, "three_as_an_array", 255.0),
        alone("a `SharedExitStack`: new, register, close, drop, instructions", "one_shared", 1000.0),
    ]
}

/// The instructions of all rounds of a case, from callgrind's output file.
fn total(case: &str) -> f64 {
    let name = format!("callgrind.{case}.out");
    let file = find(&results("gungraun"), &name).unwrap_or_else(|| panic!("gungraun left no {name}"));
    let file = fs::read_to_string(file).unwrap();
    let total = file.lines().find_map(|line| line.strip_prefix("totals: ")).expect("callgrind's totals");
    total.split(' ').next().unwrap().parse().expect("the first event is the instructions")
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() { find(&path, name) } else { path.ends_with(name).then_some(path) }
    })
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

fn memory() -> Vec<Row> {
    let printed = bench("memory", &[]);
    let found: HashMap<&str, f64> = printed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, value)| (name, value.parse().expect("a number")))
        .collect();
    let row = |work, name, bar| Row { work, against: "", measured: String::new(), value: found[name], bar: Some(bar) };
    vec![
        row("bytes for each of 1,000,000 pending handlers", "bytes", 64.0),
        row("allocations, 4 handlers", "allocations-four", 0.0),
        Row {
            against: "doublings of the list",
            ..row("allocations, 1,000,000 handlers", "allocations-million", f64::from(1_000_000_u32.ilog2() + 1))
        },
        row("bytes gained from the 10,000th to the 10,000,000th pair of register and unregister", "pairs", 0.0),
        row("the same, `SharedExitStack`", "shared-pairs", 0.0),
    ]
}

// ---------------------------------------------------------------------------------------------------------------------
// Time

fn time() -> Vec<Row> {
    forget_results("criterion");
    bench("time", &["--quiet"]);
    // A case of a group, with the fraction of its time that is one piece of work, against another.
    let row = |work, against, group: &str, ours: (&str, f64), theirs: (&str, f64), bar| {
        let [ours, theirs] = [ours, theirs]
            .map(|(side, pieces)| medians(group, side).into_iter().map(|time| time / pieces).collect::<Vec<_>>());
        let ratios = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
        let measured = format!("{} : {}", nanoseconds(median(ours)), nanoseconds(median(theirs)));
        Row { work, against, measured, value: median(ratios), bar }
    };
    let plain =
        |work, against, group, pieces, bar| row(work, against, group, ("ours", pieces), ("theirs", pieces), Some(bar));
    let mut rows = vec![
        plain("1 handler, time", "boxes", "1 handlers", 1.0, 0.45),
        plain("3 handlers, time", "boxes", "3 handlers", 1.0, 0.38),
        plain("8 handlers, time", "boxes", "8 handlers", 1.0, 0.37),
        row("3 handlers written out", "three scopeguards", "written out", ("ours", 1.0), ("guards", 1.0), None),
        row("3 handlers written out", "an array of three", "written out", ("ours", 1.0), ("array", 1.0), Some(4.0)),
        plain("1,000,000 handlers, each", "boxes", "1000000 handlers", 1e6, 0.33),
        row("the same, room reserved", "boxes", "a million, reserved", ("reserved", 1e6), ("theirs", 1e6), None),
        plain("two threads, 3 handlers on stacks of their own", "boxes", "3 handlers, two threads", 2e5, 0.45),
        plain("`SharedExitStack`: register", "boxes in a `Mutex`", "shared register", 1e4, 0.55),
        plain("the same, two threads", "boxes in a `Mutex`", "shared register, two threads", 2e5, 0.75),
        plain("the same, four threads", "boxes in a `Mutex`", "shared register, four threads", 4e5, 0.75),
        plain("`SharedExitStack`: register and close", "boxes in a `Mutex`", "shared register and close", 1e4, 1.2),
        plain("`process_stack()`: register, of 100,000", "C `atexit`", "process register", 1e5, 1.05),
        row("the same, room reserved", "C `atexit`", "process register", ("reserved", 1e5), ("theirs", 1e5), None),
        plain("`process_stack()`: run, of 100,000", "C `atexit`", "process run", 1e5, 1.5),
    ];
    if results("criterion").join("unregister/cpython").exists() {
        let python =
            |work, ours, bar| row(work, "CPython's `unregister`", "unregister", ours, ("cpython", 20.0), Some(bar));
        rows.extend([
            python("`unregister` of 10,000 among 100,000, each", ("id", 1e4), 0.001),
            python("`unregister_key` of the one with a key among 100,000", ("one key", 1.0), 0.1),
            python("the same, `SharedExitStack`", ("shared one key", 1.0), 0.2),
            python("`unregister_key` of one, all 100,000 have keys", ("key", 20.0), 0.1),
            python("the same, `SharedExitStack`", ("shared key", 20.0), 0.2),
        ]);
    } else {
        eprintln!("skipped the comparison with CPython: no python3");
    }
    rows
}

/// Criterion's median for each block, in nanoseconds.
fn medians(group: &str, side: &str) -> Vec<f64> {
    let directory = results("criterion").join(group).join(side);
    let mut medians = Vec::new();
    while let Ok(file) = fs::read(directory.join(medians.len().to_string()).join("new/estimates.json")) {
        let estimates: serde_json::Value = serde_json::from_slice(&file).unwrap();
        medians.push(estimates["median"]["point_estimate"].as_f64().unwrap());
    }
    assert!(!medians.is_empty(), "criterion left nothing in {}", directory.display());
    medians
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn nanoseconds(time: f64) -> String {
    if time < 10_000.0 { format!("{time:.1} ns") } else { format!("{:.1} µs", time / 1e3) }
}
