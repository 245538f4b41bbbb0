//! Markdown documents whose SQL is run by psql, in order, one database each, and whose shown output is compared.
//!
//! * A fenced block `sql` is run. A fenced block `text` right after it is its output; a block without one only has to
//!   end without an error.
//! * `<!-- varies -->` between the two: only the names of the columns are compared, the rest is an example.
//! * `<!-- run: … -->` is run too, unseen by the reader, and must not fail: loads, and waiting for workers.
//! * In blocks `console`, what follows the prompt `=#` is not run for its effect, but must be SQL whose names exist.

pub mod reference;
pub mod source;

use foreshard_test::install::repository;
use foreshard_test::{Client, Cluster, Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// What every document may use in its hidden statements; the walk on a clean machine reads it too.
pub const PRELUDE: &str = "pg_test/documents/prelude.sql";

/// What is done with a document, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Shown statements.
    Shown {
        /// The statements.
        sql: String,
        /// Lines of the document that are the output, if it is shown.
        output: Option<(usize, usize)>,
        /// Only the names of the columns are compared.
        varies: bool,
    },
    /// Hidden statements.
    Hidden(String),
}

/// A document, cut into what is run and what is compared.
#[derive(Debug, Default)]
pub struct Document {
    /// Its lines.
    pub lines: Vec<String>,
    /// What is run.
    pub steps: Vec<Step>,
    /// Statements that are only looked at.
    pub console: Vec<String>,
}

/// Where the reader of a document is.
enum Place {
    Prose,
    /// In a block: ticks of its fence, info string, first line.
    Block(usize, String, usize),
    /// In a comment that begins with this line.
    Comment(usize),
}

impl Document {
    /// Cuts a text.
    pub fn parse(text: &str) -> Document {
        let mut document =
            Document { lines: text.lines().map(str::to_string).collect(), ..Document::default() };
        let (mut place, mut pending, mut varies) = (Place::Prose, false, false);
        for (number, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            let ticks = trimmed.chars().take_while(|c| *c == '`').count();
            match &place {
                Place::Prose if ticks >= 3 => {
                    place = Place::Block(ticks, trimmed[ticks..].trim().into(), number + 1)
                }
                Place::Prose if trimmed.starts_with("<!--") => place = Place::Comment(number),
                Place::Prose if !trimmed.is_empty() => (pending, varies) = (false, false),
                Place::Block(open, info, first) if ticks >= *open && trimmed.len() == ticks => {
                    pending = document.block(info.as_str(), (*first, number), pending, varies);
                    varies = false;
                    place = Place::Prose;
                }
                _ => {}
            }
            if let Place::Comment(first) = place
                && trimmed.ends_with("-->")
            {
                varies |= document.comment(first, number);
                place = Place::Prose;
            }
        }
        document
    }

    /// Takes a block; true when the next one may be its output.
    fn block(&mut self, info: &str, (first, end): (usize, usize), pending: bool, varies: bool) -> bool {
        let text = self.lines[first..end].join("\n");
        match (info, self.steps.last_mut()) {
            ("sql", _) => {
                self.steps.push(Step::Shown { sql: text, output: None, varies: false });
                return true;
            }
            ("text", Some(Step::Shown { output, varies: example, .. })) if pending => {
                (*output, *example) = (Some((first, end)), varies);
            }
            ("console", _) => self.console.extend(prompted(&text)),
            _ => {}
        }
        false
    }

    /// Takes a comment; true when it says that the output varies.
    fn comment(&mut self, first: usize, last: usize) -> bool {
        let text = self.lines[first..=last].join("\n");
        let text = text.trim().trim_start_matches("<!--").trim_end_matches("-->").trim();
        if let Some(sql) = text.strip_prefix("run:") {
            self.steps.push(Step::Hidden(sql.trim().to_string()));
        }
        text == "varies"
    }

    /// What psql is given: the steps, each after a line that marks its output.
    fn script(&self, prelude: &str) -> String {
        let mut script = format!("{prelude}\n");
        for (number, step) in self.steps.iter().enumerate() {
            let (Step::Shown { sql, .. } | Step::Hidden(sql)) = step;
            script.push_str(&format!("\\echo {}\n{sql}\n", mark(number)));
        }
        script
    }

    /// The output that the document shows for a step.
    fn shown(&self, output: (usize, usize)) -> String {
        tidy(&self.lines[output.0..output.1].join("\n"))
    }
}

/// The statements after the prompts of a session: `=#` begins one, `-#` goes on.
fn prompted(text: &str) -> Vec<String> {
    let mut statements: Vec<String> = Vec::new();
    for line in text.lines() {
        let (first, rest) = match (line.trim_start().strip_prefix("=#"), line.trim_start().strip_prefix("-#"))
        {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) if line.starts_with(' ') && !statements.is_empty() => (false, line),
            _ => continue,
        };
        match statements.last_mut() {
            Some(last) if !first => last.push_str(&format!("\n{rest}")),
            _ => statements.push(rest.to_string()),
        }
    }
    // What psql itself does with a statement is not the server's.
    statements.iter().map(|s| s.split('\\').next().unwrap_or_default().trim().to_string()).collect()
}

fn mark(number: usize) -> String {
    format!("-=- step {number} -=-")
}

/// Without blanks at the ends of lines and blank lines at the ends.
fn tidy(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n").trim_matches('\n').to_string()
}

/// The documents of the repository that are run, with their paths.
pub fn all() -> Result<Vec<PathBuf>> {
    let docs = repository().join("docs");
    let mut paths = Vec::new();
    for folder in [docs.clone(), docs.join("how-to")] {
        for entry in fs::read_dir(folder)?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "md") {
                paths.push(entry.path());
            }
        }
    }
    paths.sort();
    Ok(paths)
}

/// Runs a document in a database of its own; what differs, or nothing. With `accept` the document is rewritten.
pub fn check(cluster: &Cluster, path: &Path, accept: bool) -> Result<String> {
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("document").replace('-', "_");
    let mut document = Document::parse(&fs::read_to_string(path)?);
    let mut admin = cluster.connect("postgres")?;
    admin.exec(&format!("CREATE DATABASE doc_{name} TEMPLATE template0"))?;
    let outputs = run(cluster, &format!("doc_{name}"), &document)?;
    let mut wrong = compare(&mut document, &outputs, accept);
    wrong.push_str(&look_at(&mut cluster.connect(&format!("doc_{name}"))?, &document.console)?);
    if accept {
        fs::write(path, document.lines.join("\n") + "\n")?;
    }
    admin.exec(&format!("DROP DATABASE doc_{name} WITH (FORCE)"))?;
    Ok(if wrong.is_empty() { wrong } else { format!("\n--- {}{wrong}", path.display()) })
}

/// What psql said to every step.
fn run(cluster: &Cluster, database: &str, document: &Document) -> Result<Vec<String>> {
    let file = cluster.data_dir().join(format!("{database}.out"));
    let out = File::create(&file)?;
    let install = cluster.install();
    let mut psql = install
        .user
        .command(&install.program("psql"))
        .arg("-Xq")
        .arg(format!("{} options='-c statement_timeout=60s'", cluster.conninfo(database)))
        .stdin(Stdio::piped())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    let prelude = fs::read_to_string(repository().join(PRELUDE))?;
    let script = document.script(&prelude);
    if let Some(stdin) = psql.stdin.take() {
        let mut stdin = stdin;
        stdin.write_all(script.as_bytes())?;
    }
    psql.wait()?;
    let text = fs::read_to_string(&file)?;
    let mut outputs = Vec::new();
    let mut rest = text.as_str();
    for number in 0..document.steps.len() {
        let missing = || Error::new(format!("psql ended before step {number} of {database}:\n{text}"), "");
        let (_, after) = rest.split_once(&mark(number)).ok_or_else(missing)?;
        rest = after;
        outputs.push(tidy(after.split(&mark(number + 1)).next().unwrap_or_default()));
    }
    Ok(outputs)
}

/// True when a step failed.
fn fails(output: &str) -> bool {
    output
        .lines()
        .any(|line| ["ERROR:", "FATAL:", "PANIC:", "invalid command"].iter().any(|e| line.starts_with(e)))
}

/// The first line of an output: of a table, the names of its columns, without the blanks between.
fn head(output: &str) -> String {
    let first = output.lines().next().unwrap_or_default();
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What differs between a document and what came out.
fn compare(document: &mut Document, outputs: &[String], accept: bool) -> String {
    let mut wrong = String::new();
    // From the end, since accepted output may be longer or shorter.
    for (number, output) in outputs.iter().enumerate().rev() {
        let (sql, shown) = match &document.steps[number] {
            Step::Shown { sql, output: Some(lines), varies } => (sql, Some((*lines, *varies))),
            Step::Shown { sql, .. } | Step::Hidden(sql) => (sql, None),
        };
        let Some((lines, varies)) = shown else {
            if fails(output) {
                wrong.push_str(&format!("\n{sql}\ngave\n{output}\n"));
            }
            continue;
        };
        let wanted = document.shown(lines);
        let same = if varies { head(&wanted) == head(output) } else { wanted == *output };
        if same {
            continue;
        }
        if accept {
            document.lines.splice(lines.0..lines.1, output.lines().map(str::to_string));
        } else {
            wrong.push_str(&format!("\n{sql}\nshows\n{wanted}\nbut gave\n{output}\n"));
        }
    }
    wrong
}

/// Statements that are not SQL, or name what foreshard does not have.
pub fn look_at(client: &mut Client, statements: &[String]) -> Result<String> {
    let mut wrong = String::new();
    for statement in statements {
        client.exec("BEGIN")?;
        if let Err(error) = client.exec(statement) {
            let ours = error.message.contains("foreshard");
            let bad = match error.sqlstate.as_str() {
                "42601" | "42703" => true,
                "42883" | "42P01" | "42704" | "42725" => ours && !error.message.contains("_catalog"),
                _ => false,
            };
            if bad {
                wrong.push_str(&format!("\n{statement}\ngave {error}\n"));
            }
        }
        client.exec("ROLLBACK")?;
    }
    Ok(wrong)
}

/// Links of a document that lead to no file.
pub fn broken_links(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    Ok(local
        .filter(|target| !folder.join(target.split('#').next().unwrap_or_default()).exists())
        .map(|target| format!("{}: {target}", path.display()))
        .collect())
}
