//! How fast the daemon is, against private servers, as ratios to references that are run in turn with it. Run by `dev/bench`;
//! `docs/reference/performance.md` tells what was found. Figures to look at, not a test.

#![allow(missing_docs, unreachable_pub, dead_code, reason = "it borrows what the integration tests stand on")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program to look at"
)]

mod clients;
mod jobs;
mod load;
mod process;
mod report;
mod scenarios;
mod servers;
#[path = "../../tests/it/support/mod.rs"]
mod support;

use clap::Parser;
use jobs::{Bench, Job};
use process::Run;
use report::Line;
use scenarios::Scenario;
use servers::Servers;

/// Measures pointsd against private servers.
#[derive(Debug, Parser)]
#[command(name = "dev/bench")]
struct Arguments {
    /// One round of everything with few messages: under three minutes.
    #[arg(long)]
    quick: bool,
    /// How often everything is run.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: Option<u64>,
    /// How many messages stand in a queue, where nothing else is said.
    #[arg(long)]
    messages: Option<u64>,
    /// A setting to try, such as `ledger.pool_size=3`; may be given again.
    #[arg(long = "with", value_name = "KEY=VALUE", value_parser = setting)]
    with: Vec<(String, String)>,
    /// Another pointsd to compare this one with, without the settings that are tried: SQLite and PostgreSQL, clean.
    #[arg(long, value_name = "PROGRAM")]
    other: Option<std::path::PathBuf>,
    /// Only scenarios with one of these texts in their name.
    scenarios: Vec<String>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A setting as the environment variable that the daemon reads.
fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE, as in ledger.pool_size=3")?;
    Ok((format!("POINTSD_{}", key.replace('.', "__").to_uppercase()), value.to_owned()))
}

fn main() {
    let mut arguments = std::env::args();
    if arguments.nth(1).as_deref() == Some(process::CLIENT) {
        return process::be_client(&arguments.next().unwrap());
    }
    let arguments = Arguments::parse();
    let wanted = |scenario: &Scenario| {
        arguments.scenarios.is_empty() || arguments.scenarios.iter().any(|text| scenario.name.contains(text))
    };
    let mut scenarios = scenarios::all();
    scenarios.extend(scenarios::with_checks());
    if arguments.other.is_some() {
        scenarios.extend(scenarios::with_the_other());
    }
    let scenarios: Vec<Scenario> = scenarios.into_iter().filter(wanted).collect();
    if scenarios.is_empty() {
        eprintln!("no scenario has one of these texts in its name; without one all are run, and the table names them");
        std::process::exit(2);
    }
    let mut runs: Vec<(Job, Vec<Run>)> = Vec::new();
    for job in scenarios.iter().flat_map(Scenario::jobs) {
        if !runs.iter().any(|(known, _)| *known == job) {
            runs.push((job, Vec::new()));
        }
    }
    // By jobs::Size.
    let mut sizes = if arguments.quick { [20_000, 2000, 60_000, 10_000] } else { [120_000, 5000, 1_000_000, 10_000] };
    sizes[0] = arguments.messages.unwrap_or(sizes[0]);
    let (rounds, grown) = if arguments.quick { (1, 500_000) } else { (3, 10_000_000) };
    let rounds = arguments.rounds.unwrap_or(rounds);
    let bench = Bench {
        servers: Servers::start(grown),
        runtime: tokio::runtime::Runtime::new().unwrap(),
        sizes,
        with: arguments.with.clone(),
        other: arguments.other.clone(),
    };
    let mut number = 0;
    for round in 0..rounds {
        for (job, runs) in &mut runs {
            if !job.is_worth_repeating() && round > 0 {
                continue;
            }
            number += 1;
            let begun = std::time::Instant::now();
            let run = bench.run(*job, number);
            eprintln!("{}/{rounds} {job:?}: {run:.3?} (within {:.1?})", round + 1, begun.elapsed());
            runs.push(run);
        }
    }
    let lines: Vec<Line> = scenarios.iter().map(|scenario| Line::new(scenario, &runs)).collect();
    println!("\n{} messages a run, {rounds} rounds; {} credits present where many are\n", sizes[0], grown);
    print!("{}", report::table(&lines));
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("speed.json"), serde_json::to_string_pretty(&lines).unwrap()).unwrap();
    report::chart(&folder.join("speed.svg"), &lines);
    println!("\nalso in {0}/speed.json and {0}/speed.svg", folder.display());
}
