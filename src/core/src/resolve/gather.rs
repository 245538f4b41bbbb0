//! Answers of several places and several steps become one: every input with all that was derived from it, once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A row that a source gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The key it was asked for.
    pub key: String,
    /// What is derived from it.
    pub output: String,
    /// Whatever else the source tells about it, as JSON.
    pub attributes: Option<String>,
}

/// An input and what was derived from it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resolved {
    /// Number of the input.
    pub input: u32,
    /// The output.
    pub output: String,
    /// Whatever the last source tells about it, as JSON.
    pub attributes: Option<String>,
}

/// A limit was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooMuch {
    /// More pairs of input and key than this.
    Rows(usize),
    /// More bytes than this.
    Bytes(usize),
}

/// Most bytes of keys and attributes that a step may hold.
pub const MAX_BYTES: usize = 256 << 20;

/// The keys reached so far, and from which inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    keys: BTreeMap<String, BTreeSet<u32>>,
}

impl Frontier {
    /// The inputs, each once; returns them in the order of their numbers as well.
    pub fn of_inputs(inputs: impl IntoIterator<Item = String>) -> (Frontier, Vec<String>) {
        let mut frontier = Frontier::default();
        let mut order = Vec::new();
        for input in inputs {
            if !frontier.keys.contains_key(&input) {
                let number = u32::try_from(order.len()).unwrap_or(u32::MAX);
                frontier.keys.insert(input.clone(), BTreeSet::from([number]));
                order.push(input);
            }
        }
        (frontier, order)
    }

    /// The keys, in their order.
    pub fn keys(&self) -> Vec<&str> {
        self.keys.keys().map(String::as_str).collect()
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Makes one key, the first, of those that are equal: places in the order of the keys.
    pub fn merge(&mut self, groups: &[Vec<usize>]) {
        let keys: Vec<String> = self.keys.keys().cloned().collect();
        for group in groups {
            let mut equal = group.iter().filter_map(|place| keys.get(*place));
            let Some(first) = equal.next() else { continue };
            for other in equal {
                let inputs = self.keys.remove(other).unwrap_or_default();
                self.keys.entry(first.clone()).or_default().extend(inputs);
            }
        }
    }

    /// Keys of answers that were not asked for, as they are written, each once.
    pub fn strangers(&self, answers: &[Answer]) -> BTreeSet<String> {
        let unknown = answers.iter().filter(|answer| !self.keys.contains_key(&answer.key));
        unknown.map(|answer| answer.key.clone()).collect()
    }

    /// How many answers are to keys that were not asked for.
    pub fn unasked(&self, answers: &[Answer]) -> usize {
        answers.iter().filter(|answer| !self.keys.contains_key(&answer.key)).count()
    }

    /// What the answers lead to. Answers to keys that were not asked for are left out.
    ///
    /// # Errors
    /// When there are more than `max_rows` pairs of input and new key.
    pub fn next(&self, answers: &[Answer], max_rows: usize) -> Result<Frontier, TooMuch> {
        let mut reached = Frontier::default();
        let (mut pairs, mut bytes) = (0_usize, 0_usize);
        for answer in answers {
            let Some(inputs) = self.keys.get(&answer.key) else { continue };
            if !reached.keys.contains_key(&answer.output) {
                bytes += answer.output.len();
                reached.keys.insert(answer.output.clone(), BTreeSet::new());
            }
            if let Some(from) = reached.keys.get_mut(&answer.output) {
                let before = from.len();
                from.extend(inputs);
                pairs += from.len() - before;
            }
            within(pairs, bytes, max_rows)?;
        }
        Ok(reached)
    }

    /// What the answers of the last step give for every input, each once, in the order of inputs and outputs.
    ///
    /// # Errors
    /// When there are more than `max_rows`.
    pub fn finish(&self, answers: &[Answer], max_rows: usize) -> Result<Vec<Resolved>, TooMuch> {
        let mut all: HashMap<(u32, &str), BTreeSet<Option<&str>>> = HashMap::new();
        let (mut rows, mut bytes) = (0_usize, 0_usize);
        for answer in answers {
            for input in self.keys.get(&answer.key).into_iter().flatten() {
                let attributes = answer.attributes.as_deref();
                if all.entry((*input, &answer.output)).or_default().insert(attributes) {
                    rows += 1;
                    bytes += answer.output.len() + attributes.map_or(0, str::len);
                }
                within(rows, bytes, max_rows)?;
            }
        }
        let mut resolved: Vec<Resolved> = Vec::with_capacity(rows);
        for ((input, output), attributes) in all {
            resolved.extend(attributes.into_iter().map(|attributes| Resolved {
                input,
                output: output.to_owned(),
                attributes: attributes.map(str::to_owned),
            }));
        }
        resolved.sort_unstable();
        Ok(resolved)
    }

    /// The keys themselves, when there is no step at all.
    pub fn as_they_are(&self) -> Vec<Resolved> {
        let pairs = self.keys.iter().flat_map(|(key, inputs)| inputs.iter().map(move |input| (*input, key)));
        let mut resolved: Vec<Resolved> =
            pairs.map(|(input, key)| Resolved { input, output: key.clone(), attributes: None }).collect();
        resolved.sort_unstable();
        resolved
    }
}

fn within(rows: usize, bytes: usize, max_rows: usize) -> Result<(), TooMuch> {
    if rows > max_rows {
        Err(TooMuch::Rows(max_rows))
    } else if bytes > MAX_BYTES {
        Err(TooMuch::Bytes(MAX_BYTES))
    } else {
        Ok(())
    }
}

/// An array of texts as PostgreSQL reads it.
pub fn array_literal<'a>(elements: impl IntoIterator<Item = &'a str>) -> String {
    let mut literal = String::from("{");
    for (number, element) in elements.into_iter().enumerate() {
        literal.push_str(if number == 0 { "\"" } else { ",\"" });
        for c in element.chars() {
            if c == '"' || c == '\\' {
                literal.push('\\');
            }
            literal.push(c);
        }
        literal.push('"');
    }
    literal.push('}');
    literal
}
