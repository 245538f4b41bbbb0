//! What the reference takes from the source itself: typed refusals with their advice, and the SQLSTATEs that are raised.

use foreshard_test::install::repository;
use foreshard_test::{Error, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// One machine-readable word.
#[derive(Debug, PartialEq, Eq)]
pub struct Word {
    /// The word.
    pub name: String,
    /// What it says.
    pub meaning: String,
    /// What a person can do.
    pub advice: String,
}

/// An enum of words: source file, enum.
pub const REFUSALS: [(&str, &str); 2] =
    [("src/core/src/placement/refusal.rs", "RefusalReason"), ("src/core/src/division.rs", "NotDivided")];
/// Constants `(word, advice)`: source files.
pub const CONSTANTS: [&str; 2] = ["src/catalog/decision.rs", "src/planner/gatherings.rs"];
/// Why a shard is no place for a slot.
pub const UNFIT: (&str, &str) = ("src/core/src/placement/consider.rs", "Unfit");
/// Why a step begins when it does.
pub const START: (&str, &str) = ("src/core/src/placement/timing.rs", "Start");

fn read(path: &str) -> Result<String> {
    fs::read_to_string(repository().join(path)).map_err(|error| Error::new(format!("{path}: {error}."), ""))
}

/// The words of an enum with `as_str()` and perhaps `advice()`; the meaning is the variant's documentation.
pub fn of_enum((path, name): (&str, &str)) -> Result<Vec<Word>> {
    let words = enum_words(&read(path)?, name);
    if words.is_empty() {
        return Err(Error::new(format!("{path} has no words of {name}."), "Has it moved?"));
    }
    Ok(words)
}

fn enum_words(source: &str, name: &str) -> Vec<Word> {
    let body = after(source, &format!("pub enum {name} {{")).split("\n}").next().unwrap_or_default();
    let methods = after(source, &format!("\nimpl {name} {{"));
    let method = |of: &str| after(methods, &format!("fn {of}(")).split("\n    }").next().unwrap_or_default();
    let mut doc = String::new();
    let mut words = Vec::new();
    for line in body.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc = format!("{doc}{text}").trim().to_string();
        } else if let Some(variant) = line.strip_suffix(',') {
            let arm = format!("Self::{variant} =>");
            let meaning = std::mem::take(&mut doc);
            if let Some(name) = literal(after(method("as_str"), &arm)) {
                let advice = literal(after(method("advice"), &arm)).unwrap_or_default();
                words.push(Word { name, meaning, advice });
            }
        }
    }
    words
}

/// The words of constants of a file: `const NAME: … = ("word", "Advice.")` with documentation before.
pub fn of_constants(path: &str) -> Result<Vec<Word>> {
    let words = constant_words(&read(path)?);
    if words.is_empty() {
        return Err(Error::new(format!("{path} has no words."), "Have they moved?"));
    }
    Ok(words)
}

fn constant_words(source: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut doc = String::new();
    for (at, line) in source.match_indices('\n').map(|(at, _)| (at + 1, after(&source[at..], "\n"))) {
        let line = line.lines().next().unwrap_or_default();
        if let Some(text) = line.strip_prefix("///") {
            doc = text.trim().to_string();
            continue;
        }
        let constant =
            line.contains("const ") && (line.contains(": (&str, &str)") || line.contains(": Refusal"));
        if constant && let Some((_, value)) = source[at..].split_once('=') {
            let mut strings = literals(value.split(';').next().unwrap_or_default()).into_iter();
            // An advice may have a semicolon in it.
            let whole: Vec<String> = literals(value.split(");").next().unwrap_or_default());
            if let (Some(name), Some(advice)) = (strings.next(), whole.into_iter().nth(1)) {
                words.push(Word { name, meaning: meaning_of(&doc), advice });
            }
        }
        doc.clear();
    }
    words
}

/// The documentation without how it begins.
fn meaning_of(doc: &str) -> String {
    let text = ["Machine-readable reason and advice for ", "Reason and advice for "]
        .iter()
        .find_map(|start| doc.strip_prefix(start))
        .unwrap_or(doc);
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// What follows a text; nothing when it is not there.
fn after<'a>(text: &'a str, start: &str) -> &'a str {
    text.split_once(start).map_or("", |(_, rest)| rest)
}

/// The first string literal, lines that are continued joined.
fn literal(text: &str) -> Option<String> {
    literals(text).into_iter().next()
}

fn literals(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut letters = text.chars().peekable();
    while letters.by_ref().any(|c| c == '"') {
        let mut value = String::new();
        while let Some(letter) = letters.next() {
            match letter {
                '"' => break,
                '\\' if letters.peek() == Some(&'\n') => {
                    while letters.next_if(|c| c.is_whitespace()).is_some() {}
                }
                '\\' => value.extend(letters.next()),
                _ => value.push(letter),
            }
        }
        found.push(value);
    }
    found
}

/// PostgreSQL's names of the errors that the extension makes itself, as in `ERRCODE_…`.
pub fn raised() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for path in rust_files(&repository().join("src"))? {
        let text = fs::read_to_string(path)?;
        for (at, prefix) in text.match_indices("PgSqlErrorCode::ERRCODE_") {
            let before = text[..at].trim_end();
            let made = ["error(", "ERROR,", "let code ="].iter().any(|end| before.ends_with(end));
            if made && !before.ends_with("is_error(") {
                let name = &text[at + prefix.len()..];
                names.insert(name.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect());
            }
        }
    }
    Ok(names)
}

fn rust_files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

#[test]
fn words_are_found() {
    let source = "\n/// Reasons.\npub enum Why {\n    /// It is\n    /// hot.\n    TooHot,\n}\n\nimpl Why {\n    pub const fn as_str(self) -> &'static str {\n        match self {\n            Self::TooHot => \"too_hot\",\n        }\n    }\n\n    pub fn advice(self) -> &'static str {\n        match self {\n            Self::TooHot => {\n                \"Cool \\\n                 it.\"\n            }\n        }\n    }\n}\n";
    let word = |name: &str, meaning: &str, advice: &str| Word {
        name: name.into(),
        meaning: meaning.into(),
        advice: advice.into(),
    };
    assert_eq!(enum_words(source, "Why"), [word("too_hot", "It is hot.", "Cool it.")]);
    let source = "\n/// Reason and advice for a step.\nconst LATER: (&str, &str) =\n    (\"later\", \"Wait; it comes.\");\n";
    assert_eq!(constant_words(source), [word("later", "A step.", "Wait; it comes.")]);
}
