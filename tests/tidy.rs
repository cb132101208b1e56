//! The rules of the code's shape (`ARCHITECTURE.md`), proven: which folder may name which crate and which neighbour.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { files_below(&path, extension) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect()
}

fn sources() -> Vec<(String, String)> {
    let src = Path::new(ROOT).join("src");
    let files = files_below(&src, "rs");
    assert!(files.len() > 40, "all of the sources are found");
    files
        .iter()
        .map(|file| (file.strip_prefix(&src).unwrap().display().to_string(), fs::read_to_string(file).unwrap()))
        .collect()
}

/// Code without comments: what a line says after `//` is prose.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Whether the code names a crate or a module as a path's first part.
fn names(code: &str, name: &str) -> bool {
    let part_of_word = |character: char| character.is_alphanumeric() || character == '_';
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        let free = before.is_none_or(|character| !part_of_word(character));
        // `crate::metrics` would be a module of ours.
        let ours = code[..at].ends_with("crate::") && !name.starts_with("crate::");
        free && !ours && after.starts_with("::")
    })
}

/// Code less its `use crate::…;`, and the paths that begin with a module that was brought in so.
fn without_our_own_uses(code: &str) -> String {
    let mut rest = code.to_owned();
    let mut ours = String::new();
    while let Some(start) = rest.find("use crate::") {
        let end = rest[start..].find(';').map_or(rest.len(), |end| start + end + 1);
        ours.push_str(&rest[start..end]);
        rest.replace_range(start..end, "");
    }
    let mut brought_in = ours.split(|character: char| !character.is_alphanumeric() && character != '_');
    if brought_in.any(|word| word == "metrics") {
        rest = rest.replace(" metrics::", " ours::").replace("(metrics::", "(ours::");
    }
    rest
}

#[test]
fn only_the_folder_of_a_crate_names_it() {
    // (crate, the places that may name it)
    let rules: [(&str, &[&str]); 12] = [
        ("lapin", &["broker/"]),
        ("async_rs", &["broker/"]),
        ("diesel", &["ledger/", "database/", "pay_status/sql/"]),
        ("diesel_migrations", &["ledger/"]),
        ("r2d2", &["ledger/", "database/"]),
        ("reqwest", &["pay_status/http/"]),
        ("backoff", &["pauses.rs"]),
        ("metrics", &["observe/metrics/"]),
        ("metrics_exporter_prometheus", &["observe/metrics/", "app/endpoints.rs"]),
        ("axum", &["app/endpoints.rs"]),
        ("clap", &["cli/"]),
        ("anyhow", &["cli/", "app/"]),
    ];
    let mut faults = Vec::new();
    for (file, text) in sources() {
        // What is ours may be called as a crate is.
        let code = without_our_own_uses(&code(&text));
        for (name, places) in rules {
            if names(&code, name) && !places.iter().any(|place| file.starts_with(place)) {
                faults.push(format!("{file} names {name}, which belongs to {places:?}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_domain_is_pure() {
    let impure = ["tokio", "lapin", "diesel", "metrics", "tracing", "std::time", "std::fs", "std::net", "std::env"];
    for (file, text) in sources().into_iter().filter(|(file, _)| file.starts_with("domain/")) {
        let code = code(&text);
        for name in impure {
            assert!(!names(&code, name) && !code.contains(&format!("use {name}")), "{file} names {name}");
        }
        assert!(!code.contains("async "), "{file} is asynchronous");
    }
}

#[test]
fn nothing_outside_the_databases_knows_a_dialect() {
    let knowing = |file: &str| ["ledger/", "database/", "pay_status/sql/"].iter().any(|place| file.starts_with(place));
    for (file, text) in sources().into_iter().filter(|(file, _)| !knowing(file)) {
        let code = code(&text);
        for word in ["SELECT ", "INSERT ", "UPDATE ", "sql_query", "PgConnection", "SqliteConnection"] {
            assert!(!code.contains(word), "{file} has {word:?}");
        }
    }
}

#[test]
fn every_amqp_option_is_written_out() {
    for (file, text) in sources().into_iter().filter(|(file, _)| file.starts_with("broker/")) {
        for line in code(&text).lines() {
            assert!(!line.contains("Options::default()") && !line.contains("..Default"), "{file}: {}", line.trim());
        }
    }
}

#[test]
fn files_stay_short_enough_to_hold_in_the_head() {
    for (file, text) in sources().into_iter().filter(|(file, _)| !file.ends_with("tests.rs")) {
        let code = text.split("#[cfg(test)]").next().unwrap().lines().count();
        assert!(code <= 320, "{file} has {code} lines: two concerns?");
    }
}

#[test]
fn every_metric_is_set_and_has_a_help_text() {
    let definitions = fs::read_to_string(Path::new(ROOT).join("src/observe/metrics/mod.rs")).unwrap();
    let events = files_below(&Path::new(ROOT).join("src/observe/events"), "rs");
    let events: String = events.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let lines: Vec<&str> = definitions.lines().collect();
    let mut count = 0;
    let is_definition = |line: &str| line.contains(" = \"pointsd_") && !line.starts_with("//");
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| is_definition(line)) {
        count += 1;
        let (metric, _) = line.trim().split_once(": ").unwrap();
        assert!(lines[index - 1].trim().starts_with("/// "), "{metric} has no help text");
        let set = ["add(", "set(", "record("].iter().any(|call| events.contains(&format!("metrics::{metric}.{call}")));
        assert!(set || metric == "BUILD_INFO", "{metric} is never set by an event");
    }
    assert!(count >= 10, "the definitions are found: {count}");
}

#[test]
fn only_the_definitions_of_the_metrics_name_one_or_call_the_macros() {
    for (file, text) in sources().into_iter().filter(|(file, _)| !file.starts_with("observe/metrics/")) {
        // The tests of an event look for its metric.
        let code = code(text.split("#[cfg(test)]").next().unwrap());
        for word in ["counter!(", "gauge!(", "histogram!("] {
            assert!(!code.contains(word), "{file} calls {word}");
        }
        let named = code.contains("\"pointsd_") && file.starts_with("observe/");
        assert!(!named, "{file} names a metric");
    }
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let mut tests = String::new();
    for folder in ["src", "tests"] {
        for file in files_below(&Path::new(ROOT).join(folder), "rs") {
            tests.push_str(&fs::read_to_string(file).unwrap());
        }
    }
    let mut documents = files_below(&Path::new(ROOT).join("docs"), "md");
    documents.extend(
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| Path::new(ROOT).join(name)),
    );
    let mut named = 0;
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        // A test's name is a sentence: four words at the least.
        let words = text.split('`').skip(1).step_by(2).filter(|word| {
            word.matches('_').count() >= 3
                && !word.starts_with("pointsd_")
                && !word.starts_with("pg_")
                && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        });
        for word in words {
            named += 1;
            assert!(tests.contains(&format!("fn {word}(")), "{}: there is no test {word}", document.display());
        }
    }
    assert!(named > 15, "the names are found: {named}");
}

#[test]
fn the_test_of_this_test_finds_what_it_looks_for() {
    assert!(names("use lapin::Channel;", "lapin"));
    assert!(names("let x = ::lapin::Channel;", "lapin"));
    assert!(!names("use crate::metrics::X;", "metrics"));
    assert!(names("use ::backoff::X;", "backoff"));
    assert!(!names("my_lapin::x", "lapin") && !names("lapin_x", "lapin"));
    assert!(!names(&code("// lapin::Channel"), "lapin"));
}
