//! The house rules, asked of the source itself: the whole repository, not only this crate.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::fs;
use std::path::{Path, PathBuf};

const MAX_LINES: usize = 500;

/// A file, its lines, and the same lines with comments and literals blanked out.
struct Source {
    path: String,
    lines: Vec<String>,
    code: Vec<String>,
}

impl Source {
    fn under(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }

    /// Lines (from 1) of which `bad` holds, given their code, as `path:line: why`.
    fn find(&self, why: &str, bad: impl Fn(&str) -> bool) -> Vec<String> {
        let numbered = self.code.iter().enumerate().filter(|(_, line)| bad(line));
        numbered.map(|(index, _)| format!("{}:{}: {why}", self.path, index + 1)).collect()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let skipped = ["target", ".git", "expected", "results"].iter().any(|skip| name == *skip);
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !skipped => walk(&path, files),
            Ok(kind) if kind.is_file() => files.push(path),
            _ => {}
        }
    }
}

fn files(extensions: &[&str]) -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    for folder in ["src", "pg_test", "demo", "bench", "sql"] {
        walk(&root.join(folder), &mut found);
    }
    found.push(root.join("Cargo.toml"));
    found.sort();
    let wanted =
        |path: &PathBuf| path.extension().is_some_and(|own| extensions.iter().any(|wanted| own == *wanted));
    let named = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
        (name, fs::read_to_string(&path).unwrap())
    };
    found.into_iter().filter(wanted).map(named).collect()
}

fn sources() -> Vec<Source> {
    let source = |(path, text): (String, String)| Source {
        path,
        lines: text.lines().map(str::to_owned).collect(),
        code: code_of(&text).lines().map(str::to_owned).collect(),
    };
    files(&["rs"]).into_iter().map(source).collect()
}

/// The text with comments and the insides of literals replaced by spaces, line by line.
fn code_of(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skip(&chars, at);
        if end == at {
            code.push(chars[at]);
            at += 1;
        } else {
            chars[at..end].iter().for_each(|c| code.push(if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    code
}

/// Where the comment or literal that begins at `at` ends; `at` when none begins there.
fn skip(chars: &[char], at: usize) -> usize {
    let is = |at: usize, text: &str| text.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c));
    let until = |from: usize, text: &str| {
        (from..chars.len()).find(|at| is(*at, text)).map_or(chars.len(), |at| at + text.len())
    };
    if is(at, "//") {
        return (at..chars.len()).find(|at| chars[*at] == '\n').unwrap_or(chars.len());
    }
    if is(at, "/*") {
        return until(at + 2, "*/");
    }
    let inside_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    if chars[at] == 'r' && (!inside_word || chars[at - 1] == 'b' || chars[at - 1] == 'c') {
        let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
        if is(at + 1 + hashes, "\"") {
            return until(at + 2 + hashes, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    if chars[at] == '"' {
        return end_of_quoted(chars, at + 1, '"');
    }
    // 'x' and '\n' are literals, 'a alone is a lifetime.
    if chars[at] == '\'' && (is(at + 1, "\\") || is(at + 2, "'")) {
        return end_of_quoted(chars, at + 1, '\'');
    }
    at
}

fn end_of_quoted(chars: &[char], mut at: usize, quote: char) -> usize {
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// Whether `word` stands in `line` as a whole word.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

/// The code with every `#[cfg(…test…)]` item blanked.
fn without_tests(code: &[String]) -> Vec<String> {
    let (mut depth, mut open, mut skipping) = (0_usize, false, false);
    let mut kept = Vec::new();
    for line in code {
        let attribute = line.trim_start().starts_with("#[cfg(") && has_word(line, "test");
        if attribute && !skipping {
            (depth, open, skipping) = (0, false, true);
        }
        kept.push(if skipping { String::new() } else { line.clone() });
        for c in line.chars().filter(|_| skipping) {
            match c {
                '{' => (depth, open) = (depth + 1, true),
                '}' => depth = depth.saturating_sub(1),
                // An item without a body, such as `mod tests;`.
                ';' if !open => open = true,
                _ => {}
            }
        }
        skipping = skipping && !(open && depth == 0);
    }
    kept
}

fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
}

#[test]
fn files_are_short() {
    let long = |source: &&Source| !source.under("sql/") && source.lines.len() > MAX_LINES;
    let tell = |source: &Source| format!("{}: {} lines", source.path, source.lines.len());
    assert_none(sources().iter().filter(long).map(tell).collect());
}

#[test]
fn no_tabs_or_trailing_spaces() {
    let mut found = Vec::new();
    for (path, text) in files(&["rs", "sql", "toml"]) {
        for (index, line) in text.lines().enumerate() {
            if line.contains('\t') || line.ends_with(' ') || line.ends_with('\r') {
                found.push(format!("{path}:{}: tab or trailing space", index + 1));
            }
        }
    }
    assert_none(found);
}

#[test]
fn unsafe_lives_in_src_pg() {
    let mut found = Vec::new();
    // The test harness has a floor of its own: the calls into libpq.
    let floor = |source: &Source| source.under("src/pg/") || source.under("pg_test/src/ffi/");
    for source in sources().iter().filter(|source| !floor(source)) {
        // pgrx needs the entry points unmangled; that attribute is no unsafe operation.
        let bad = |line: &str| has_word(&line.replace("#[unsafe(no_mangle)]", ""), "unsafe");
        found.extend(source.find("unsafe outside src/pg", bad));
    }
    assert_none(found);
}

#[test]
fn every_unsafe_says_why() {
    let mut found = Vec::new();
    let floor = |source: &Source| source.under("src/pg/") || source.under("pg_test/src/ffi/");
    for source in sources().iter().filter(|source| floor(source)) {
        for (index, line) in source.code.iter().enumerate() {
            let kinds = ["unsafe {", "unsafe impl", "unsafe fn", "unsafe extern"];
            let near = &source.lines[index.saturating_sub(4)..=index];
            let said = near.iter().any(|l| l.contains("SAFETY:") || l.contains("# Safety"));
            if kinds.iter().any(|kind| line.contains(kind)) && is_unsafe_item(line) && !said {
                found.push(format!("{}:{}: unsafe without SAFETY:", source.path, index + 1));
            }
        }
    }
    assert_none(found);
}

/// Whether an `unsafe` of this line is met or demanded here. A function pointer type (`unsafe extern
/// "C" fn(…)`, no name behind `fn`) is neither.
fn is_unsafe_item(line: &str) -> bool {
    let Some((_, rest)) = line.split_once("unsafe extern") else { return true };
    let named = |(_, name): (&str, &str)| name.starts_with(|c: char| c.is_alphabetic() || c == '_');
    rest.split_once("fn ").map_or_else(|| rest.trim_end().ends_with('{') && !rest.contains("fn("), named)
}

#[test]
fn layers_are_kept() {
    let rules: [(&str, &[&str]); 7] = [
        ("src/pg/", &["catalog", "observe", "engine", "mover", "worker", "api"]),
        ("src/observe/", &["catalog", "engine", "mover", "worker", "api"]),
        ("src/catalog/", &["engine", "mover", "worker", "api"]),
        ("src/graph/", &["observe", "engine", "mover", "worker", "api"]),
        ("src/resolve/", &["observe", "engine", "mover", "worker", "api"]),
        ("src/api/", &["worker"]),
        ("src/core/src/", &["pg", "catalog", "observe", "engine", "mover", "worker", "api"]),
    ];
    let mut found = Vec::new();
    for source in sources() {
        for (folder, forbidden) in rules.iter().filter(|(folder, _)| source.under(folder)) {
            for layer in *forbidden {
                let path = format!("crate::{layer}");
                let why = format!("{folder} must not use {path}");
                found.extend(source.find(&why, |line| has_word(line, &path)));
            }
        }
    }
    assert_none(found);
}

#[test]
fn core_knows_no_server() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.under("src/core/src/")) {
        for word in ["pgrx", "libc", "SystemTime", "Instant", "thread_rng"] {
            found.extend(source.find(&format!("{word} in core"), |line| has_word(line, word)));
        }
    }
    assert_none(found);
}

#[test]
fn versions_differ_in_compat_only() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.under("src/")) {
        let compat = source.path == "src/pg/compat.rs" || source.under("src/pg/compat/");
        if compat || source.under("src/core/tests/") {
            continue;
        }
        for (index, line) in source.lines.iter().enumerate() {
            if line.contains("feature = \"pg1") && has_word(&source.code[index], "cfg") {
                found.push(format!("{}:{}: cfg(pgNN) outside compat", source.path, index + 1));
            }
        }
    }
    assert_none(found);
}

#[test]
fn nothing_panics_outside_tests() {
    let calls = [".unwrap()", ".expect(", "panic!(", "todo!(", "unimplemented!("];
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.under("src/")) {
        if source.under("src/core/tests/") || source.under("src/core/benches/") {
            continue;
        }
        for (index, line) in without_tests(&source.code).iter().enumerate() {
            for call in calls.iter().filter(|call| line.contains(*call)) {
                found.push(format!("{}:{}: {call}", source.path, index + 1));
            }
        }
    }
    assert_none(found);
}

#[test]
fn sql_text_stays_below_the_edge() {
    let verbs = ["\"SELECT ", "\"INSERT INTO ", "\"UPDATE ", "\"DELETE FROM "];
    let mut found = Vec::new();
    for source in sources() {
        if !["src/api/", "src/observe/", "src/worker/"].iter().any(|edge| source.under(edge)) {
            continue;
        }
        let end = without_tests(&source.code);
        for (index, line) in source.lines.iter().enumerate() {
            let is_code = !end[index].trim().is_empty();
            if is_code && verbs.iter().any(|verb| line.contains(verb)) {
                found.push(format!("{}:{}: SQL text", source.path, index + 1));
            }
        }
    }
    assert_none(found);
}

#[test]
fn the_checks_see_what_they_should() {
    let code = code_of("a // unsafe\nlet x = \"un\\\"safe\"; /* b\n */ 'q' r#\"unsafe\"# &'a unsafe");
    let lines: Vec<&str> = code.lines().collect();
    assert!(!has_word(lines[0], "unsafe") && !has_word(lines[1], "unsafe"));
    assert!(has_word(lines[2], "unsafe") && lines[2].matches("unsafe").count() == 1);
    assert!(!has_word("forbid(unsafe_code)", "unsafe"));
    let text = "a()\n#[cfg(test)]\nmod t {\n x.unwrap()\n}\nb()\n#[cfg(test)]\nmod u;\nc()";
    let kept = without_tests(&text.lines().map(str::to_owned).collect::<Vec<_>>());
    let kept: Vec<&str> = kept.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
    assert_eq!(kept, ["a()", "b()", "c()"]);
    assert!(sources().len() > 10);
}
