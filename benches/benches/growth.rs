//! Twice the handlers, twice the time: registers and runs 10³ to 10⁷ handlers, prints a table, and draws `growth.svg`
//! next to this package's README.

#![expect(clippy::cast_precision_loss, reason = "times and counts to be read, and drawn")]

use std::fmt::Write;
use std::hint::black_box;

use exitstack::{ExitStack, SharedExitStack};
use exitstack_benches::{Boxes, Shared, cpu_time, keep_memory, register_and_run, register_many};

const COUNTS: [usize; 13] = [
    1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
];
const ROUNDS: usize = 5;

/// A name, a color, and what it does.
type Contender = (&'static str, &'static str, fn(usize));

const CONTENDERS: [Contender; 3] = [
    ("boxes in a Vec", "#c0392b", register_and_run::<Boxes>),
    ("SharedExitStack", "#2980b9", |count| {
        let stack = SharedExitStack::new();
        register_many(&stack, count);
        stack.run();
    }),
    ("ExitStack", "#27ae60", register_and_run::<ExitStack>),
];

/// Nanoseconds of processor time: the median of several rounds, after one round that warms the heap.
fn time(work: fn(usize), count: usize) -> f64 {
    let repeat = (200_000 / count).max(1);
    let round = || {
        let start = cpu_time();
        (0..repeat).for_each(|_| work(black_box(count)));
        (cpu_time() - start).as_nanos() as f64 / repeat as f64
    };
    round();
    let mut times: Vec<f64> = (0..ROUNDS).map(|_| round()).collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn main() {
    keep_memory();
    let [boxes, shared, stack] = CONTENDERS.map(|(_, _, work)| COUNTS.map(|count| time(work, count)));
    println!("| handlers | `ExitStack`, ms | ns each | `SharedExitStack`, ms | ns each | boxes, ms | ns each |");
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (at, count) in COUNTS.into_iter().enumerate() {
        print!("| {count} |");
        for times in [&stack, &shared, &boxes] {
            print!(" {:.3} | {:.1} |", times[at] / 1e6, times[at] / count as f64);
        }
        println!();
    }
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/growth.svg"), draw(&[boxes, shared, stack])).unwrap();
}

// ---------------------------------------------------------------------------------------------------------------------
// The picture; both axes are logarithmic

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 50.0;
/// The ends of the axes, as powers of ten: handlers, and nanoseconds.
const X: [f64; 2] = [3.0, 7.0];
const Y: [f64; 2] = [3.0, 9.0];

fn x(count: f64) -> f64 {
    LEFT + (count.log10() - X[0]) / (X[1] - X[0]) * (WIDTH - LEFT - 20.0)
}

fn y(nanoseconds: f64) -> f64 {
    HEIGHT - BOTTOM - (nanoseconds.log10() - Y[0]) / (Y[1] - Y[0]) * (HEIGHT - TOP - BOTTOM)
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), style: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    writeln!(svg, r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" {style}/>"#).unwrap();
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, colour: &str, text: &str) {
    let (x, y) = at;
    writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="{colour}">{text}</text>"#).unwrap();
}

fn draw(times: &[[f64; COUNTS.len()]; CONTENDERS.len()]) -> String {
    const GRID: &str = r##"stroke="#ddd""##;
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">
<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>
"#
    );
    let (left, right) = (1e3, 1e7);
    for (count, label) in [(1e3, "10³"), (1e4, "10⁴"), (1e5, "10⁵"), (1e6, "10⁶"), (1e7, "10⁷ handlers")] {
        line(&mut svg, (x(count), y(1e3)), (x(count), y(1e9)), GRID);
        let anchor = if count < 1e7 { "middle" } else { "end" };
        text(&mut svg, (x(count), HEIGHT - BOTTOM + 18.0), anchor, "#333", label);
    }
    for (time, label) in
        [(1e3, "1 µs"), (1e4, "10 µs"), (1e5, "100 µs"), (1e6, "1 ms"), (1e7, "10 ms"), (1e8, "100 ms"), (1e9, "1 s")]
    {
        line(&mut svg, (x(left), y(time)), (x(right), y(time)), GRID);
        text(&mut svg, (LEFT - 8.0, y(time) + 4.0), "end", "#333", label);
    }
    let dashed = r##"stroke="#888" stroke-dasharray="5 5""##;
    line(&mut svg, (x(left), y(left * 20.0)), (x(right), y(right * 20.0)), dashed);
    let title = "time to register and run them, both axes logarithmic; dashed: 20 ns each";
    text(&mut svg, (WIDTH / 2.0, HEIGHT - 10.0), "middle", "#333", title);
    for (place, ((name, colour, _), times)) in CONTENDERS.iter().zip(times).enumerate() {
        let points = COUNTS.iter().zip(times).fold(String::new(), |mut points, (count, time)| {
            write!(points, "{:.1},{:.1} ", x(*count as f64), y(*time)).unwrap();
            points
        });
        writeln!(svg, r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>"#).unwrap();
        text(&mut svg, (LEFT + 20.0, TOP + 25.0 + 20.0 * place as f64), "start", colour, name);
    }
    svg.push_str("</svg>\n");
    svg
}
