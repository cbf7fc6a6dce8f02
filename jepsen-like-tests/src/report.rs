//! The report of a run: one self-contained HTML file that can be sent around and opened anywhere.
//!
//! The data is aggregated here into short time intervals: how many operations ended in which way and their latencies,
//! next to the faults, the leaders and the results of the checkers. Only the intervals are in the page, so a run of a
//! million operations makes a page of a few hundred kilobytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::checker::evidence::{Evidence, OperationSummary};
use crate::record::faults::Fault;
use crate::record::history::Op;
use crate::record::history::{NEVER, OutcomeKind};
use crate::record::leaders::Leadership;
use crate::record::run::Run;
use crate::record::verdict::Verdict;

pub const REPORT: &str = "report.html";
/// The number of intervals of a run: about one per horizontal pixel of a plot.
const STRETCHES: u64 = 600;
/// The shortest interval; a shorter one would contain too few operations to be readable.
const STRETCH_NS_MIN: u64 = 20_000_000;

#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    run: &'a Run,
    verdict: &'a Verdict,
    faults: &'a [Fault],
    leaders: &'a [Leadership],
    stretch_ns: u64,
    ended: u64,
    series: Vec<Series>,
}

/// The results of one kind of operation over time.
#[derive(Serialize)]
struct Series {
    op: Op,
    total: u64,
    stretches: Vec<Stretch>,
}

/// One interval: the operations that ended in it, by outcome, and the latencies in milliseconds of those that were
/// `ok`.
#[derive(Serialize, Default, Clone)]
struct Stretch {
    ok: u32,
    fail: u32,
    info: u32,
    #[serde(skip)]
    latencies: Vec<f32>,
    p50: f32,
    p99: f32,
    max: f32,
}

/// Writes the report of a run into its directory.
pub fn write(dir: &Path, evidence: &Evidence, verdict: &Verdict) -> Result<PathBuf> {
    let path = dir.join(REPORT);
    std::fs::write(&path, page(evidence, verdict)?).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn page(evidence: &Evidence, verdict: &Verdict) -> Result<String> {
    let ended = evidence
        .summaries
        .iter()
        .map(|m| m.ended)
        .filter(|ended| *ended != NEVER)
        .max()
        .unwrap_or(0);
    let ended = evidence.faults.iter().map(|f| f.ended).fold(ended, u64::max);
    let stretch_ns = (ended / STRETCHES).max(STRETCH_NS_MIN);
    let page = Page {
        title: &evidence.run.title,
        run: &evidence.run,
        verdict,
        faults: &evidence.faults,
        leaders: &evidence.leaderships,
        stretch_ns,
        ended,
        series: series(&evidence.summaries, stretch_ns, ended),
    };
    // Nothing is escaped inside a script element, but `</script>` would end it.
    let data = serde_json::to_string(&page)?.replace('<', "\\u003c");
    Ok(include_str!("report/page.html")
        .replace("/*STYLE*/", include_str!("report/page.css"))
        .replace("/*SCRIPT*/", include_str!("report/page.js"))
        .replace("{/*DATA*/}", &data))
}

fn series(moments: &[OperationSummary], stretch_ns: u64, ended: u64) -> Vec<Series> {
    let count = (ended / stretch_ns + 1) as usize;
    let mut by_op: BTreeMap<Op, Vec<Stretch>> = BTreeMap::new();
    for moment in moments {
        let stretches = by_op
            .entry(moment.op)
            .or_insert_with(|| vec![Stretch::default(); count]);
        // An operation that never ended is shown where it began.
        let at = if moment.ended == NEVER {
            moment.began
        } else {
            moment.ended
        };
        let stretch = &mut stretches[(at / stretch_ns) as usize];
        match moment.outcome {
            OutcomeKind::Ok => {
                stretch.ok += 1;
                stretch.latencies.push((at - moment.began) as f32 / 1e6);
            }
            OutcomeKind::Fail => stretch.fail += 1,
            OutcomeKind::Info => stretch.info += 1,
        }
    }
    by_op
        .into_iter()
        .map(|(op, mut stretches)| {
            stretches.iter_mut().for_each(summarise);
            let total = stretches.iter().map(|s| u64::from(s.ok + s.fail + s.info)).sum();
            Series { op, total, stretches }
        })
        .collect()
}

fn summarise(stretch: &mut Stretch) {
    let mut latencies = std::mem::take(&mut stretch.latencies);
    latencies.sort_by(f32::total_cmp);
    if let Some(last) = latencies.len().checked_sub(1) {
        let at = |share: f32| latencies[(last as f32 * share).round() as usize];
        (stretch.p50, stretch.p99, stretch.max) = (at(0.5), at(0.99), at(1.0));
    }
}
