//! The report survives whatever people call their things, however many they have, whatever is unknown.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::report::{
    Ahead, Calibration, Curve, Heat, HeatRow, HotKey, Influencer, Move, Part, Problem, Recommendation,
    Report, Shard, Table, Trigger, html, literal,
};
use proptest::prelude::*;

const EVIL: [&str; 6] = [
    "</script><img src=x onerror=alert(1)>",
    "\"&'<svg onload=alert(1)>",
    "</style></title><!--",
    "javascript:alert('x')//\\",
    "名前 \u{202e}gnp.exe\u{0} é\u{1f525}",
    "&lt;b&gt; {{7*7}} ${x} %s",
];

/// A report in which there is so much of everything, under such names.
fn report(name: &str, many: usize, value: f64) -> Report {
    let text = || name.to_string();
    let some = Some(value);
    let at = |n: usize| 1.8e9 + 10.0 * n as f64;
    let shard = |n: usize| Shard {
        name: format!("{name}{n}"),
        node: text(),
        capacity: 100.0,
        slots: 3,
        bytes: 1 << 30,
        load: some,
        draining: true,
    };
    let ahead = |n: usize| Ahead { at: at(many + n), load: some, lower: some, upper: some, planned: some };
    Report {
        database: text(),
        server: text(),
        extension: text(),
        made_at: at(many),
        utc_offset_s: 3600,
        mode: text(),
        tables: (0..many)
            .map(|_| Table { name: text(), key: text(), ..Table::default() })
            .collect::<Vec<_>>()
            .into(),
        shards: (0..many).map(shard).collect::<Vec<_>>().into(),
        heat: Heat {
            step_s: 10,
            starts: (0..many).map(at).collect(),
            slots: (0..many)
                .map(|n| HeatRow { slot_id: n as i64, shard: text(), load: some, cells: vec![some; many] })
                .collect::<Vec<_>>()
                .into(),
        },
        curves: (0..many)
            .map(|n| Curve {
                shard: format!("{name}{n}"),
                capacity: 100.0,
                measured: (0..many).map(|n| (at(n), some)).collect(),
                ahead: (0..many).map(ahead).collect(),
            })
            .collect(),
        recommendations: (0..many).map(|n| recommendation(name, n, value)).collect::<Vec<_>>().into(),
        moves: (0..many).map(|n| one_move(name, n, value)).collect::<Vec<_>>().into(),
        triggers: (0..many)
            .map(|_| Trigger {
                table: text(),
                trigger: text(),
                function: text(),
                event: text(),
                calls: 7,
                cpu_us: some,
                elapsed_us: some,
                wal_bytes: some,
                total_ms: some,
            })
            .collect::<Vec<_>>()
            .into(),
        hot_keys: (0..many)
            .map(|n| HotKey {
                table: text(),
                slot_id: n as i64,
                key: Some(text()),
                accesses: value,
                lower: value,
                upper: value,
            })
            .collect::<Vec<_>>()
            .into(),
        influencers: (0..many)
            .map(|n| Influencer {
                graph: format!("{name}{}", n % 3),
                place: n as i32,
                node: Some(text()),
                influence: value,
                betweenness: value,
            })
            .collect::<Vec<_>>()
            .into(),
        calibration: (0..many)
            .map(|n| Calibration { group_id: n as i32, trust: text(), outcomes: 9, stated: some, paid: some })
            .collect::<Vec<_>>()
            .into(),
        problems: (0..many)
            .map(|n| Problem {
                severity: if n % 2 == 0 { "error".into() } else { text() },
                object: text(),
                problem: text(),
                detail: text(),
                hint: text(),
            })
            .collect::<Vec<_>>()
            .into(),
    }
}

fn recommendation(name: &str, n: usize, value: f64) -> Recommendation {
    let text = || Some(name.to_string());
    let actions = ["move", "split", "prepare", "merge", "isolate", "place", "home", "none", name];
    Recommendation {
        id: n as i64,
        action: actions[n % actions.len()].to_string(),
        slot_id: n as i64,
        other: Some(5),
        from: text(),
        to: text(),
        confidence: Some(value),
        benefit: Some(value),
        bytes: Some(-1),
        imbalance: Some((value, value)),
        reason: text(),
        refusal: text(),
        advice: text(),
        start_at: Some(value),
        overload_at: Some(value),
        table: text(),
        key: text(),
        map: text(),
    }
}

fn one_move(name: &str, n: usize, value: f64) -> Move {
    let states = ["done", "failed", "cancelled", "waiting", "running", name];
    Move {
        id: n as i64,
        kind: name.into(),
        slot_id: 1,
        from: name.into(),
        to: name.into(),
        phase: name.into(),
        state: states[n % states.len()].to_string(),
        started_at: Some(value),
        finished_at: n.is_multiple_of(2).then_some(value),
        percent: Some(value),
        eta_s: Some(value),
        bytes: Some(i64::MAX),
        requested_by: name.into(),
        reason: Some(name.into()),
        error: Some(name.into()),
    }
}

const TAGS: &str = "html head meta title style body header nav main footer section article h1 h2 h3 p a b i br div span small bdi code pre \
    dl dt dd figure figcaption details summary table thead tbody tr th td svg path rect circle";

/// Fails unless every tag is one of the page's own and all are closed in order, and every & begins an entity.
fn well_formed(page: &str) {
    let void = ["meta", "br"];
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap();
    while let Some(at) = rest.find('<') {
        assert!(!rest[..at].contains('>') || open.last() == Some(&"style"), "a > in text: {}", &rest[..at]);
        let end = at + rest[at..].find('>').unwrap();
        let tag = &rest[at + 1..end];
        let name = tag.trim_start_matches('/').split([' ', '\n']).next().unwrap();
        assert!(TAGS.split_whitespace().chain(["title"]).any(|known| known == name), "unknown tag <{tag}>");
        // Without the quoted values only names of attributes are left.
        let attributes: String = tag.split('"').step_by(2).collect();
        assert!(attributes.split(' ').skip(1).all(|one| !one.starts_with("on")), "a handler? <{tag}>");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "closed out of order");
        } else if !void.contains(&name) {
            open.push(name);
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "left open: {open:?}");
    for (at, _) in page.match_indices('&') {
        let entity: String = page[at..].chars().take(7).collect();
        assert!(
            ["&amp;", "&lt;", "&gt;", "&quot;"].iter().any(|known| entity.starts_with(known)),
            "{entity}"
        );
    }
}

#[test]
fn hostile_names_stay_text() {
    for name in EVIL {
        let page = html(&report(name, 8, 3.5));
        well_formed(&page);
        let lower = page.to_lowercase();
        for bad in ["<img", "<script", "\u{202e}", "\u{0}", "href=\"j"] {
            assert!(!lower.contains(bad), "{bad} of {name}");
        }
        assert!(page.contains("default-src 'none'"));
        assert!(!page.contains("http://") && !page.contains("https://"), "the page needs no network");
    }
    // What a browser shows of them is what they are.
    let page = html(&report("</script><img src=x onerror=alert(1)>", 2, 1.0));
    assert!(page.contains("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;"));
}

#[test]
fn statements_quote_what_they_name() {
    let name = "a'); DROP TABLE x; --";
    let page =
        html(&Report { recommendations: vec![recommendation(name, 0, 0.9)].into(), ..Report::default() });
    assert!(page.contains("SELECT foreshard.move_slot(0, 'a''); DROP TABLE x; --');"), "{page}");
    assert_eq!(literal("\\'"), "E'\\\\'''");
}

#[test]
fn everything_is_bounded_and_says_so() {
    let mut big = report(&"x".repeat(5000), 400, 3.5);
    big.moves.total = 123_456;
    let page = html(&big);
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
    for said in
        ["123426 more moves, older, are not shown", "slots, less hot, are not shown", "shards are not shown"]
    {
        assert!(page.contains(said), "{said}");
    }
    let huge = html(&report("y", 4000, 1.0));
    assert!(huge.len() < page.len() + 1_000_000, "{} bytes", huge.len());
}

#[test]
fn nothing_known_is_no_failure() {
    let page = html(&Report::default());
    well_formed(&page);
    assert!(page.contains("No table is managed yet") && !page.contains("NaN") && !page.contains("<figure"));
    let page = html(&report("one", 1, 0.0));
    well_formed(&page);
}

#[test]
fn every_figure_has_a_table() {
    let page = html(&report("t", 6, 3.5));
    for section in page.split("<section").skip(1).filter(|section| section.contains("<figure")) {
        assert!(section.contains("<details"), "{}", &section[..200]);
    }
    assert!(page.matches("<figure").count() >= 9);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn whatever_the_numbers(value in any::<f64>(), many in 0_usize..6, name in "\\PC{0,20}") {
        let page = html(&report(&name, many, value));
        well_formed(&page);
        prop_assert!(!page.contains("NaN") || name.contains("NaN"));
        prop_assert!(!page.contains("=\"inf") && !page.contains("=\"-inf"));
    }

    #[test]
    fn parts_say_what_is_missing(known in 0_usize..50, more in 0_usize..50) {
        let tables = Part { known: vec![Table::default(); known], total: known + more };
        let page = html(&Report { tables, ..Report::default() });
        let hidden = known + more - known.min(30);
        let said = format!("{hidden} more tables are not shown");
        prop_assert_eq!(page.contains(&said), hidden > 0);
    }
}

/// Whatever the catalog allows as an action has a statement that does it.
#[test]
fn every_action_has_its_statement() {
    let all = [
        ("move", "SELECT foreshard.move_slot(1, 'it''s');"),
        ("split", "SELECT foreshard.split_slot(1, to_shard_b => 'it''s');"),
        ("prepare", "SELECT foreshard.prepare_split(1, to_shard_b => 'it''s');"),
        ("merge", "SELECT foreshard.merge_slots(1, 5);"),
        ("isolate", "SELECT foreshard.isolate_key('it''s', 'it''s'::text, 'it''s');"),
        ("home", "SELECT foreshard.unisolate_key('it''s', 'it''s'::text);"),
        ("place", "SELECT foreshard.place_keys('it''s', 'it''s', whole => false);"),
    ];
    for (action, expected) in all {
        let one = Recommendation { action: action.to_string(), ..recommendation("it's", 1, 1.0) };
        assert_eq!(foreshard_core::report::remedy(&one).as_deref(), Some(expected));
    }
}
