//! Compares `README.md` with its Chinese translation: both must have the same headings, code blocks and links.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

const ENGLISH: &str = "README.md";
const CHINESE: &str = "README.zh-CN.md";

/// What both languages must have in common.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outline {
    /// The level of each heading, in order.
    headings: Vec<usize>,
    /// Each fenced code block, in order.
    code_blocks: Vec<String>,
    /// The target of each link, sorted: the order of words differs between the languages.
    links: Vec<String>,
}

impl Outline {
    /// Reads an outline, without the link to the other language.
    fn of(text: &str, other_language: &str) -> Self {
        let mut outline = Self::default();
        let mut open_block: Option<String> = None;
        for line in text.lines() {
            if line.starts_with("```") && open_block.is_some() {
                outline.code_blocks.extend(open_block.take());
            } else if let Some(block) = &mut open_block {
                block.push('\n');
                block.push_str(line);
            } else if line.starts_with("```") {
                open_block = Some(line.to_owned());
            } else {
                let level = line.chars().take_while(|&character| character == '#').count();
                if level > 0 && line[level..].starts_with(' ') {
                    outline.headings.push(level);
                }
                outline.links.extend(link_targets(line).filter(|target| target != other_language));
            }
        }
        assert_eq!(open_block, None, "a code block is not closed");
        outline.links.sort();
        outline
    }
}

/// The targets of the inline links in one line.
fn link_targets(line: &str) -> impl Iterator<Item = String> + '_ {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned())
}

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn both_readmes_have_the_same_headings_commands_and_links() {
    let english = Outline::of(&read(ENGLISH), CHINESE);
    let chinese = Outline::of(&read(CHINESE), ENGLISH);
    assert_eq!(english.headings, chinese.headings, "levels of the headings");
    assert_eq!(english.code_blocks, chinese.code_blocks, "code blocks");
    assert_eq!(english.links, chinese.links, "targets of the links");
    let commands = ["\n$ dev/run", "\n$ dev/test"];
    assert!(commands.iter().all(|command| english.code_blocks.iter().any(|block| block.contains(command))));
}

#[test]
fn each_readme_links_to_the_other_at_its_top() {
    for (name, other) in [(ENGLISH, CHINESE), (CHINESE, ENGLISH)] {
        let text = read(name);
        let top: String = text.lines().take(5).collect::<Vec<_>>().join("\n");
        assert!(top.contains(&format!("]({other})")), "{name} does not link to {other} in its first five lines");
    }
}

#[test]
fn the_readme_has_at_most_150_lines() {
    let lines = read(ENGLISH).lines().count();
    assert!(lines <= 150, "{ENGLISH} has {lines} lines");
}

#[test]
fn an_outline_differs_when_a_heading_a_command_or_a_link_differs() {
    let text = "# a\n\nb [c](d) and [e](f#g)\n\n```console\n$ run\n# no heading\n```\n\n## h\n[other](o)\n";
    let outline = Outline::of(text, "o");
    assert_eq!(outline.headings, [1, 2]);
    assert_eq!(outline.code_blocks, ["```console\n$ run\n# no heading"]);
    assert_eq!(outline.links, ["d", "f#g"]);
    for (from, to) in [("## h", "### h"), ("$ run", "$ ran"), ("(d)", "(x)"), ("[c](d)", "c"), ("## h", "h")] {
        assert_ne!(outline, Outline::of(&text.replace(from, to), "o"), "{from} replaced by {to}");
    }
}
