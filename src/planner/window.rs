//! When a step may begin: the hours that the DBA leaves for it.

use crate::pg::window;

/// What the window says of the next leads.
pub struct Opening {
    /// Per lead, whether a step may begin in it; empty: always.
    pub leads: Vec<bool>,
    /// Seconds until it opens, 0: it is open; None: not within days.
    pub opens_in_s: Option<f64>,
}

/// Whether something may begin at this moment.
pub fn is_open(now_s: f64) -> bool {
    window::current().is_none_or(|open| open.contains(window::minute_at(&open, now_s.floor() as i64)))
}

/// The opening of the leads from now on, each `lead_s` long.
pub fn opening(now_s: f64, lead_s: i32, leads: usize) -> Opening {
    let Some(window) = window::current() else { return Opening { leads: Vec::new(), opens_in_s: Some(0.0) } };
    let now = now_s.floor() as i64;
    let minute_at = |at_s: i64| window::minute_at(&window, at_s);
    let at = |lead: usize| now + i64::from(lead_s) * lead as i64;
    let next = window.next_open(now, minute_at);
    Opening {
        leads: (0..leads).map(|lead| window.contains(minute_at(at(lead)))).collect(),
        opens_in_s: next.map(|at| (at as f64 - now_s).max(0.0)),
    }
}
