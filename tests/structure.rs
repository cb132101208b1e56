//! The directions of dependencies (`ARCHITECTURE.md`), computed from the code: which top-level module names which other one,
//! and that neither modules nor files form a circle. There is no list of exceptions.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Which node names which others.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The sources by the path of their module, such as `pipeline::check::parse`, without their unit tests and comments.
fn modules() -> BTreeMap<String, String> {
    let src = Path::new(ROOT).join("src");
    let mut modules = BTreeMap::new();
    for file in rust_files(&src) {
        let relative = file.strip_prefix(&src).unwrap().with_extension("");
        let mut path: Vec<&str> = relative.iter().map(|part| part.to_str().unwrap()).collect();
        if path.last() == Some(&"mod") {
            path.pop();
        }
        if matches!(path.as_slice(), ["lib" | "main"]) || path.last().is_some_and(|name| name.ends_with("tests")) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
        modules.insert(path.join("::"), code.join("\n"));
    }
    assert!(modules.len() > 100, "all of the sources are found: {}", modules.len());
    modules
}

/// The paths in a use tree: `a::{b, c::{d, e}}` has `a::b`, `a::c::d` and `a::c::e`.
fn leaves(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, inner)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap().trim();
        return vec![path.trim_end_matches("::self").to_owned()];
    };
    let inner = inner.trim_end().strip_suffix('}').unwrap();
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0, 0);
    for (at, character) in inner.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[begin..]);
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(leaves).map(|leaf| format!("{prefix}{leaf}").trim_end_matches("::self").to_owned()).collect()
}

/// What stands between `use` and `;`, also where it takes several lines.
fn use_trees(code: &str) -> Vec<&str> {
    let mut trees = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let before = code[..at].rsplit('\n').next().unwrap().trim();
        let begins = before.is_empty() || before == "pub" || (before.starts_with("pub(") && before.ends_with(')'));
        if begins && let Some((tree, _)) = code[at + "use ".len()..].split_once(';') {
            trees.push(tree);
        }
    }
    trees
}

/// Every path of this crate that a module names, from the root of the crate.
fn named_paths(module: &str, code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for tree in use_trees(code) {
        for leaf in leaves(tree) {
            let mut here: Vec<&str> = module.split("::").collect();
            let mut parts = leaf.split("::").peekable();
            match parts.peek() {
                Some(&"crate") => {
                    here.clear();
                    parts.next();
                }
                Some(&"super") => {
                    while parts.next_if(|part| *part == "super").is_some() {
                        here.pop();
                    }
                }
                Some(&"self") => {
                    parts.next();
                }
                _ => continue,
            }
            paths.push(here.into_iter().chain(parts).collect::<Vec<_>>().join("::"));
        }
    }
    // In the middle of the code.
    for (at, _) in code.match_indices("crate::") {
        let path = code[at + "crate::".len()..].split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        paths.push(path.into_iter().next().unwrap().trim_end_matches(':').to_owned());
    }
    paths
}

fn top(path: &str) -> &str {
    path.split("::").next().unwrap()
}

fn graph_of_modules(modules: &BTreeMap<String, String>) -> Graph {
    let tops: BTreeSet<&str> = modules.keys().map(|module| top(module)).collect();
    let mut graph = Graph::new();
    for (module, code) in modules {
        let named = graph.entry(top(module).to_owned()).or_default();
        let paths = named_paths(module, code).into_iter().map(|path| top(&path).to_owned());
        named.extend(paths.filter(|name| name != top(module) && tops.contains(name.as_str())));
    }
    graph
}

/// By `use` lines. That a file names the module which it is a part of is no arrow.
fn graph_of_files(modules: &BTreeMap<String, String>) -> Graph {
    let mut graph = Graph::new();
    for (module, code) in modules {
        let named = graph.entry(module.clone()).or_default();
        for path in named_paths(module, code) {
            let parts: Vec<&str> = path.split("::").collect();
            let file =
                (1..=parts.len()).rev().map(|count| parts[..count].join("::")).find(|it| modules.contains_key(it));
            named.extend(file.filter(|file| file != module && !module.starts_with(&format!("{file}::"))));
        }
    }
    graph
}

/// The nodes that can be reached from themselves.
fn circles(graph: &Graph) -> Vec<String> {
    let reachable = |from: &String| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(node) = open.pop() {
            for next in graph.get(node).into_iter().flatten() {
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
        seen
    };
    graph.keys().filter(|node| reachable(node).contains(*node)).cloned().collect()
}

/// The table of `ARCHITECTURE.md`: what each top-level module may name.
fn allowed() -> Graph {
    let text = fs::read_to_string(Path::new(ROOT).join("ARCHITECTURE.md")).unwrap();
    let table = text.split("| module | holds | may name |").nth(1).expect("the table").split("\n\n").next().unwrap();
    let mut allowed = Graph::new();
    for row in table.lines().skip(2) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let module = cells[0].split('`').nth(1).unwrap().trim_end_matches('/').trim_end_matches(".rs");
        let names = cells.last().unwrap().split('`').skip(1).step_by(2).map(str::to_owned);
        allowed.insert(module.to_owned(), names.collect());
    }
    allowed
}

#[test]
fn the_top_level_modules_form_no_circle() {
    assert_eq!(circles(&graph_of_modules(&modules())), Vec::<String>::new());
}

#[test]
fn every_arrow_between_top_level_modules_is_in_the_table() {
    let (graph, allowed) = (graph_of_modules(&modules()), allowed());
    let listed: Vec<&String> = allowed.keys().collect();
    assert_eq!(listed, graph.keys().collect::<Vec<_>>(), "the table has a row for each top-level module");
    let mut faults = Vec::new();
    for (module, named) in &graph {
        let all = allowed[module].contains("*");
        faults.extend(
            named
                .iter()
                .filter(|name| !all && !allowed[module].contains(*name))
                .map(|name| format!("{module} names {name}")),
        );
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_files_form_a_circle() {
    assert_eq!(circles(&graph_of_files(&modules())), Vec::<String>::new());
}

#[test]
fn a_circle_is_found() {
    let code = |text: &str| text.to_owned();
    let mut modules: BTreeMap<String, String> = [
        ("a::one".to_owned(), code("use crate::{b::Two, c};\nfn f() {}")),
        ("b".to_owned(), code("use super::c::{self, Three as Four};")),
        ("c".to_owned(), code("fn f() { }")),
    ]
    .into();
    assert!(circles(&graph_of_modules(&modules)).is_empty() && circles(&graph_of_files(&modules)).is_empty());
    modules.insert("c".to_owned(), code("fn f() { crate::a::one::f() }"));
    assert_eq!(circles(&graph_of_modules(&modules)), ["a", "b", "c"]);
    assert_eq!(circles(&graph_of_files(&modules)), ["a::one", "b", "c"]);
    // A part may name its whole; two parts must not name each other.
    let parts: BTreeMap<String, String> = [
        ("a".to_owned(), code("use one::X;")),
        ("a::one".to_owned(), code("use super::{Whole, two::Y};")),
        ("a::two".to_owned(), code("use super::Whole;")),
    ]
    .into();
    assert!(circles(&graph_of_files(&parts)).is_empty());
}
