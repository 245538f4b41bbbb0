//! A closure table of the user's, compared with the closure of its own rows of depth 1 before it is adopted.

use super::input::Input;
use crate::catalog::graph::create::Plan;
use crate::catalog::name_of;
use crate::pg::graph::read;
use crate::pg::report::{PgResult, PgSqlErrorCode, error};
use foreshard_core::graph::Reached;
use foreshard_core::graph::closure::{ClosureOptions, ClosureWalk};
use pgrx::spi::quote_identifier;

/// Differences that are told.
const TOLD: usize = 3;

/// Ancestor, descendant, depth.
type Pair = (u32, u32, i32);

/// What is wrong with a closure table.
#[derive(Default)]
struct Wrong {
    missing: u64,
    surplus: u64,
    deep: u64,
    first: Vec<String>,
}

impl Wrong {
    fn is_empty(&self) -> bool {
        self.missing + self.surplus + self.deep == 0
    }

    fn tell(&mut self, input: &Input, ancestor: u32, descendant: u32, what: &str) {
        if self.first.len() < TOLD {
            let text = |node: u32| input.keys.key(node).map(|key| key.text()).unwrap_or_default();
            self.first.push(format!("({}, {}) {what}", text(ancestor), text(descendant)));
        }
    }
}

/// Whether the table of `plan` holds, under the active snapshot, exactly the pairs with a path and their smallest
/// depths; several rows of a pair count as the one with the smallest depth.
///
/// # Errors
/// 23514 when it does not, with the first differences; 54000 when the closure would be larger than `max_rows`.
pub fn verify(plan: &Plan<'_>, depth: &str, input: &Input, max_rows: u64) -> PgResult<()> {
    let table = name_of(plan.edges)?;
    let (rows, unknown) = stored(plan, &table, depth, input)?;
    let mut wrong = Wrong { surplus: unknown, ..Wrong::default() };
    let max_depth = plan.max_depth.and_then(|depth| u32::try_from(depth).ok());
    let mut walk = ClosureWalk::new(&input.graph, ClosureOptions { max_depth, self_pairs: false, max_rows });
    let mut rest = rows.as_slice();
    while let Some((ancestor, right)) =
        walk.advance().map_err(|problem| super::build::too_many_rows(&problem))?
    {
        if ancestor.is_multiple_of(256) {
            pgrx::check_for_interrupts!();
        }
        let end = rest.partition_point(|row| row.0 <= ancestor);
        let (own, others) = rest.split_at(end);
        rest = others;
        compare(input, ancestor, own, right, &mut wrong);
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(error(
        PgSqlErrorCode::ERRCODE_CHECK_VIOLATION,
        format!("table {table} is not the closure of its rows of depth 1"),
    )
    .set_detail(format!(
        "{} pairs are missing, {} have no path, {} have another depth; the first: {}.",
        wrong.missing,
        wrong.surplus,
        wrong.deep,
        wrong.first.join(", ")
    ))
    .set_hint("If its rows of depth 1 are right all the same, adopt it with verify => false; a closure that ends at some depth needs that max_depth."))
}

/// The table's rows as (ancestor, descendant, smallest depth), ascending, and how many have a node without edges.
fn stored(plan: &Plan<'_>, table: &str, depth: &str, input: &Input) -> PgResult<(Vec<Pair>, u64)> {
    let depth = quote_identifier(depth);
    let (source, target) = (quote_identifier(plan.source.0), quote_identifier(plan.target.0));
    let mut rows: Vec<Pair> = Vec::new();
    let mut unknown = 0;
    let sql = format!(
        "SELECT {source}, {target}, {depth}::pg_catalog.int4 FROM {table} \
         WHERE {source} IS NOT NULL AND {target} IS NOT NULL AND {depth} > 0 AND {source} <> {target}"
    );
    read::each(&sql, plan.kind, |row| {
        if let (Some(ancestor), Some(descendant), Some(depth)) = (row.key(1), row.key(2), row.int(3)) {
            match (input.keys.get(&ancestor), input.keys.get(&descendant)) {
                (Some(ancestor), Some(descendant)) => rows.push((ancestor, descendant, depth)),
                _ => unknown += 1,
            }
        }
        Ok(())
    })?;
    rows.sort_unstable();
    rows.dedup_by_key(|row| (row.0, row.1));
    Ok((rows, unknown))
}

fn compare(input: &Input, ancestor: u32, own: &[Pair], right: &[Reached], wrong: &mut Wrong) {
    let mut right: Vec<(u32, u32)> = right.iter().map(|row| (row.node, row.depth)).collect();
    right.sort_unstable();
    let mut found = own.iter().peekable();
    for (node, depth) in right {
        while let Some((_, surplus, _)) = found.next_if(|row| row.1 < node) {
            wrong.surplus += 1;
            wrong.tell(input, ancestor, *surplus, "has no path");
        }
        match found.next_if(|row| row.1 == node) {
            None => {
                wrong.missing += 1;
                wrong.tell(input, ancestor, node, &format!("is missing, its depth is {depth}"));
            }
            Some((_, _, stored)) if i64::from(*stored) != i64::from(depth) => {
                wrong.deep += 1;
                wrong.tell(input, ancestor, node, &format!("has depth {stored} instead of {depth}"));
            }
            Some(_) => {}
        }
    }
    for (_, surplus, _) in found {
        wrong.surplus += 1;
        wrong.tell(input, ancestor, *surplus, "has no path");
    }
}
