//! One step of a chain: all places are asked at once, each with the keys that live there; a place that fails is
//! replaced by the next of its replicas while the others go on. While a question runs here nobody listens to the others, which
//! is none of their time.

use super::memory::{self, Admitted, Outcome};
use super::network::{Candidate, Group, Network, place_name};
use super::report::{self, Line};
use super::spread::spread;
use super::{Broken, too_much};
use crate::catalog::data_source::{self, Opening, Source};
use crate::pg::receive::{TextRow, text_bytes};
use crate::pg::remote::{self, Asked, Command, Failure, Inquiry, Target};
use crate::pg::{guc, query, reading};
use foreshard_core::resolve::{Answer, Health, MAX_BYTES, TooMuch, array_literal};
use std::time::{Duration, Instant};

/// Questions to other servers that are under way at the same time.
const MAX_UNDER_WAY: usize = 32;
/// How long a question here waits until those to other servers have left.
const SEND_PATIENCE: Duration = Duration::from_secs(1);

/// Where in which chain a step is.
pub struct Place<'a> {
    /// The sources.
    pub network: &'a Network,
    /// Which of them.
    pub edge: usize,
    /// Number of the chain, from 0.
    pub chain: usize,
    /// Number of the step, from 0.
    pub step: usize,
}

/// The keys of a group, and how far asking for them is.
struct Part<'a> {
    group: &'a Group,
    keys: usize,
    literal: String,
    /// The candidate that is asked, or will be.
    at: usize,
    /// How that one was let in, until it gives a verdict.
    admitted: Option<Admitted>,
    state: State,
    /// What candidates failed with.
    failures: Vec<Failure>,
    /// A candidate had answered while nobody listened, and was asked once more.
    asked_again: bool,
}

enum State {
    Waits,
    UnderWay { inquiry: Box<Inquiry>, begun: Instant },
    Over,
}

struct Step<'a> {
    place: &'a Place<'a>,
    source: &'a Source,
    statement: String,
    limit_ms: i32,
    max_rows: usize,
    answers: Vec<Answer>,
    /// Bytes of all rows that were answered.
    bytes: usize,
    /// A question to this server ran since the others were sent: their times say nothing.
    disturbed: bool,
}

/// Asks a source for keys.
///
/// # Errors
/// When one of its places and all replicas of it failed.
pub fn ask(place: &Place<'_>, keys: &[&str], max_rows: usize) -> Result<Vec<Answer>, Broken> {
    let (source, groups) = (&place.network.sources[place.edge], &place.network.groups[place.edge]);
    let broken = |sqlstate: String, message: String| Broken { edge: place.edge, sqlstate, message };
    let spread = spread(source, groups, keys).map_err(|(state, message)| broken(state, message))?;
    let part = |(group, keys): (_, Vec<String>)| Part {
        group,
        keys: keys.len(),
        literal: array_literal(keys.iter().map(String::as_str)),
        at: 0,
        admitted: None,
        state: State::Waits,
        failures: Vec::new(),
        asked_again: false,
    };
    let mut parts: Vec<Part<'_>> =
        groups.iter().zip(spread).filter(|(_, keys)| !keys.is_empty()).map(part).collect();
    let mut step = Step {
        place,
        source,
        statement: data_source::asking(source, max_rows.saturating_add(1)),
        limit_ms: guc::RESOLVE_TIMEOUT.get(),
        max_rows,
        answers: Vec::new(),
        bytes: 0,
        disturbed: false,
    };
    let ran = step.run(&mut parts);
    // Questions that nobody waits for any more.
    for part in &mut parts {
        step.release(part);
    }
    ran.map_err(|(sqlstate, message)| broken(sqlstate, message))?;
    Ok(step.answers)
}

impl Step<'_> {
    fn run(&mut self, parts: &mut [Part<'_>]) -> Result<(), (String, String)> {
        loop {
            self.begin(parts)?;
            let mut moved = parts.iter().any(Part::waits_here);
            if moved {
                self.see_off(parts)?;
                let room = self.room(parts)?;
                if let Some(part) = parts.iter_mut().find(|part| part.waits_here()) {
                    self.ask_here(part, room)?;
                }
            }
            for part in parts.iter_mut() {
                moved |= self.advance(part)?;
            }
            self.room(parts)?;
            let under_way = || parts.iter().filter_map(Part::inquiry);
            if under_way().next().is_none() && parts.iter().all(|part| matches!(part.state, State::Over)) {
                return Ok(());
            }
            if !moved {
                remote::wait(under_way());
            }
        }
    }

    /// Waits until questions to other servers have left: connecting takes several round trips, and nobody sees to them while one
    /// runs here.
    fn see_off(&mut self, parts: &mut [Part<'_>]) -> Result<(), (String, String)> {
        let until = Instant::now() + limit(self.limit_ms).min(SEND_PATIENCE);
        loop {
            for part in parts.iter_mut() {
                self.advance(part)?;
            }
            self.begin(parts)?;
            let staying = || parts.iter().filter_map(Part::inquiry).filter(|inquiry| !inquiry.is_sent());
            if staying().next().is_none() || Instant::now() >= until {
                return Ok(());
            }
            remote::wait(staying());
        }
    }

    /// How many bytes of answers may still come.
    fn room(&self, parts: &[Part<'_>]) -> Result<usize, (String, String)> {
        let coming: usize = parts.iter().filter_map(Part::inquiry).map(Inquiry::bytes).sum();
        MAX_BYTES.checked_sub(self.bytes + coming).ok_or_else(too_many_bytes)
    }

    /// Sends what can be sent to other servers. Candidates that are kept out are passed by.
    fn begin(&mut self, parts: &mut [Part<'_>]) -> Result<(), (String, String)> {
        let mut under_way = parts.iter().filter(|part| part.inquiry().is_some()).count();
        for part in parts.iter_mut() {
            while matches!(part.state, State::Waits) && under_way < MAX_UNDER_WAY {
                let candidate = part.candidate().ok_or_else(|| part.given_up())?.clone();
                if candidate.oid == Some(0) {
                    break;
                }
                // Who has no way there does not try in the place of others.
                let (target, opening) = match self.way_to(&candidate) {
                    Ok(way) => way,
                    Err(failure) => {
                        self.unsent(part, &candidate, failure);
                        continue;
                    }
                };
                if !self.admit(part, &candidate) {
                    continue;
                }
                match self.send(part, target, opening) {
                    Ok((inquiry, begun)) => {
                        part.state = State::UnderWay { inquiry: Box::new(inquiry), begun };
                        under_way += 1;
                    }
                    Err(failure) => self.ended(part, &candidate, None, failure),
                }
            }
        }
        Ok(())
    }

    /// Lets the question in at a candidate, or passes on to the next one.
    fn admit(&self, part: &mut Part<'_>, candidate: &Candidate) -> bool {
        let place = self.place.network.place(self.source, candidate.oid.unwrap_or(0));
        part.admitted = memory::admit(place);
        if part.admitted.is_none() {
            let message = format!("{} is kept out after failures", place_name(&candidate.name));
            self.failed(part, candidate, None, Failure::of("57P03", message), "kept out");
        }
        part.admitted.is_some()
    }

    /// Gives back the leave to try, if the place has given no verdict.
    fn release(&self, part: &mut Part<'_>) {
        if let (Some(admitted), Some(oid)) =
            (part.admitted.take(), part.candidate().and_then(|candidate| candidate.oid))
        {
            memory::release(self.place.network.place(self.source, oid), admitted);
        }
    }

    /// How the caller gets to another server, and what he says there first.
    fn way_to(&self, candidate: &Candidate) -> Result<(Target, Opening), Failure> {
        if candidate.oid.is_none() {
            return Err(Failure::of("42704", format!("server \"{}\" does not exist", candidate.name)));
        }
        let target = Target::of(&candidate.name).map_err(|(state, message)| Failure::of(&state, message))?;
        let opening = data_source::opening(self.limit_ms)
            .map_err(|report| Failure::of("XX000", report.message().to_owned()))?;
        Ok((target, opening))
    }

    fn send(&self, part: &Part<'_>, target: Target, opening: Opening) -> Result<(Inquiry, Instant), Failure> {
        let begun = Instant::now();
        let query = Command::Rows(
            self.statement.clone(),
            vec![(self.source.key_array.to_u32(), part.literal.clone())],
        );
        let commands = super::register::in_transaction(opening, vec![query]);
        Ok((Inquiry::begin(target, commands, limit(self.limit_ms))?, begun))
    }

    /// Asks this server, for no more than so many bytes. Others go on meanwhile.
    fn ask_here(&mut self, part: &mut Part<'_>, room: usize) -> Result<(), (String, String)> {
        let Some(candidate) = part.candidate().cloned() else { return Err(part.given_up()) };
        if !self.admit(part, &candidate) {
            return Ok(());
        }
        let begun = Instant::now();
        self.disturbed = true;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let asked = reading::look(Some(self.limit_ms), || {
            data_source::set_forms()?;
            let keys = query::parameter(self.source.key_array, &part.literal);
            data_source::ask(&self.statement, keys, &mut |row| {
                bytes += text_bytes(&row);
                rows.push(row);
                bytes <= room
            })
        });
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        match asked {
            Ok(()) if bytes > room => Err(too_many_bytes()),
            Ok(()) => self.answered(part, &candidate, rows, (ms, true)),
            Err(caught) => {
                let message = match caught.timed_out {
                    true => "the answer of this server took longer than foreshard.resolve_timeout".to_owned(),
                    false => caught.message,
                };
                let failure =
                    Failure { timed_out: caught.timed_out, ..Failure::of(&caught.sqlstate, message) };
                self.ended(part, &candidate, Some(ms), failure);
                Ok(())
            }
        }
    }

    /// Looks whether a question that is under way has ended; whether anything changed.
    fn advance(&mut self, part: &mut Part<'_>) -> Result<bool, (String, String)> {
        let State::UnderWay { inquiry, begun } = &mut part.state else { return Ok(false) };
        let (asked, ms) = (inquiry.advance(), begun.elapsed().as_secs_f64() * 1e3);
        let rows = if matches!(asked, Asked::Answered(_)) { inquiry.take_rows() } else { Vec::new() };
        let Some(candidate) = part.candidate().cloned() else { return Err(part.given_up()) };
        match asked {
            Asked::Waits => return Ok(false),
            Asked::Answered(_) => {
                let exact = !self.disturbed;
                self.answered(part, &candidate, rows, (ms, exact))?;
            }
            Asked::Failed(failure) => self.ended(part, &candidate, Some(ms), failure),
        }
        Ok(true)
    }

    fn answered(
        &mut self,
        part: &mut Part<'_>,
        candidate: &Candidate,
        rows: Vec<TextRow>,
        (ms, exact): (f64, bool),
    ) -> Result<(), (String, String)> {
        part.state = State::Over;
        part.admitted = None;
        let (count, keys) = (rows.len(), part.keys);
        let place = self.place.network.place(self.source, candidate.oid.unwrap_or(0));
        memory::note(place, &Outcome::Answered { keys, rows: count, ms: exact.then_some(ms) });
        self.bytes += rows.iter().map(text_bytes).sum::<usize>();
        let told =
            |[key, output, attributes]: TextRow| Some(Answer { key: key?, output: output?, attributes });
        self.answers.extend(rows.into_iter().filter_map(told));
        self.tell(part, candidate, Some(count as i64), Some(ms), "answered", None);
        if count > self.max_rows || self.answers.len() > self.max_rows {
            return Err(("53400".to_owned(), too_much(TooMuch::Rows(self.max_rows)).message().to_owned()));
        }
        Ok(())
    }

    /// A question failed: the place learns of it, the next candidate has its turn.
    fn ended(&self, part: &mut Part<'_>, candidate: &Candidate, ms: Option<f64>, failure: Failure) {
        let health = match candidate.oid {
            Some(0) => foreshard_core::resolve::health_here(&failure.sqlstate),
            _ => foreshard_core::resolve::health(&failure.sqlstate),
        };
        let outcome = if failure.unheard {
            Outcome::Unheard
        } else if failure.timed_out {
            Outcome::TimedOut
        } else {
            Outcome::Failed { sqlstate: failure.sqlstate.clone(), health, asked: ms.is_some() }
        };
        let no_verdict = failure.unheard
            || (!failure.timed_out
                && health == Health::Refused
                && (ms.is_none() || memory::is_kept_from(&failure.sqlstate)));
        if no_verdict {
            self.release(part);
        }
        if let Some(oid) = candidate.oid {
            memory::note(self.place.network.place(self.source, oid), &outcome);
        }
        let word = match (failure.timed_out, health) {
            (true, _) => "timeout",
            (false, Health::Sick) => "failed",
            (false, Health::Refused) => "refused",
        };
        self.failed(part, candidate, ms, failure, word);
    }

    /// A question could not be sent, which says nothing about the place.
    fn unsent(&self, part: &mut Part<'_>, candidate: &Candidate, failure: Failure) {
        if let Some(oid) = candidate.oid {
            memory::note(self.place.network.place(self.source, oid), &Outcome::Unsent);
        }
        self.failed(part, candidate, None, failure, "refused");
    }

    fn failed(
        &self,
        part: &mut Part<'_>,
        candidate: &Candidate,
        ms: Option<f64>,
        failure: Failure,
        word: &'static str,
    ) {
        self.tell(part, candidate, None, ms, word, Some(failure.message.clone()));
        // Who answered while nobody listened has another chance, now that somebody does.
        let again = failure.unheard && !part.asked_again;
        part.asked_again |= again;
        part.at += usize::from(!again);
        part.failures.push(failure);
        part.admitted = None;
        part.state = State::Waits;
    }

    fn tell(
        &self,
        part: &Part<'_>,
        candidate: &Candidate,
        rows: Option<i64>,
        elapsed_ms: Option<f64>,
        outcome: &'static str,
        error: Option<String>,
    ) {
        let network = self.place.network;
        report::add(Line {
            chain: self.place.chain as i32 + 1,
            step: self.place.step as i32 + 1,
            source: self.source.name.clone(),
            shards: part.group.shards.clone(),
            server: candidate.name.clone(),
            keys: part.keys as i64,
            rows,
            predicted_ms: network.predict(self.source, candidate, part.keys as f64).ms,
            elapsed_ms,
            outcome,
            error,
        });
    }
}

impl Part<'_> {
    fn candidate(&self) -> Option<&Candidate> {
        self.group.candidates.get(self.at)
    }

    /// This server is the next to be asked.
    fn waits_here(&self) -> bool {
        matches!(self.state, State::Waits)
            && self.candidate().is_some_and(|candidate| candidate.oid == Some(0))
    }

    fn inquiry(&self) -> Option<&Inquiry> {
        match &self.state {
            State::UnderWay { inquiry, .. } => Some(inquiry),
            State::Waits | State::Over => None,
        }
    }

    /// What a group failed with whose candidates have all failed.
    fn given_up(&self) -> (String, String) {
        let whose = match self.group.shards.as_slice() {
            [shard] => format!("shard \"{shard}\": "),
            _ => String::new(),
        };
        let messages: Vec<&str> = self.failures.iter().map(|failure| failure.message.as_str()).collect();
        let sqlstate = self.failures.first().map_or("XX000", |failure| failure.sqlstate.as_str());
        (sqlstate.to_owned(), format!("{whose}{}", messages.join("; ")))
    }
}

fn limit(ms: i32) -> Duration {
    Duration::from_millis(ms.max(1) as u64)
}

/// More bytes came than a step may hold.
fn too_many_bytes() -> (String, String) {
    ("53400".to_owned(), too_much(TooMuch::Bytes(MAX_BYTES)).message().to_owned())
}
