//! Replies as text for people: aligned tables. JSON is the protocol's own.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;

use time::OffsetDateTime;
use time::macros::format_description;

use super::protocol::{
    CallInfo, CallRouterReport, CalleeInfo, CertificateDate, CertificateStatus, Change, ListenerStatus,
    MailboxInfo, ReloadReport, Status,
};
use crate::mailbox::{Message, MessageKind};
use crate::media::order::{Codec, LegStats};

/// Writes to standard output; a reader that went away (`| head`) is no error.
///
/// # Errors
/// What the output says otherwise, a full disk for one.
pub fn emit(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// A table with a header line; columns are as wide as their widest cell, numbers stand right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let column = |index: usize| rows.iter().filter_map(move |row| row.get(index));
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(index, name)| {
            column(index).map(|cell| cell.chars().count()).max().unwrap_or(0).max(name.len())
        })
        .collect();
    let is_number = |cell: &String| cell == "-" || cell.chars().all(|c| c.is_ascii_digit() || c == ':');
    let right: Vec<bool> = (0..header.len())
        .map(|index| column(index).next().is_some() && column(index).all(is_number))
        .collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (index, cell) in cells.enumerate() {
            let width = widths.get(index).copied().unwrap_or(0);
            let _ = if right.get(index).copied().unwrap_or(false) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    };
    line(&mut header.iter().copied());
    for row in &rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// A peer's text without what would steer a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

/// `voxring status`.
pub fn status(status: &Status) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} (voxring {}, process {}) is {}, up {}, data in {}",
        status.node,
        status.version,
        status.pid,
        standing(status),
        uptime(status.uptime_s),
        status.data.display()
    );
    if let Some(change) = &status.change {
        text.push_str(&self::change(change));
    }
    let _ = writeln!(text, "reloads: {} done, {} refused", status.reloads, status.reloads_failed);
    let _ = writeln!(
        text,
        "calls: {} now, {} answered, {} refused; stored: {} messages, {} missed calls\n",
        status.calls_active,
        status.calls_total,
        status.refused_total.values().sum::<u64>(),
        status.messages_stored,
        status.missed_stored
    );
    text.push_str(&listeners(&status.listeners));
    text.push('\n');
    text.push_str(&certificate(status.certificate.as_ref()));
    let workers: Vec<_> = status
        .workers
        .iter()
        .map(|worker| {
            let left = worker.drain_left_s.map(|left| format!(", {} left", clock(left)));
            vec![
                worker.slot.clone(),
                format!("{}{}", worker.state.name(), left.unwrap_or_default()),
                worker.version.clone(),
                worker.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                uptime(worker.uptime_s),
                worker.restarts.to_string(),
                worker.heartbeat_age_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms ago")),
                worker.calls_active.to_string(),
                (worker.memory_kib / 1024).to_string(),
            ]
        })
        .collect();
    let header = ["WORKER", "STATE", "VERSION", "PROCESS", "UP", "RESTARTS", "HEARTBEAT", "CALLS", "MIB"];
    text.push_str(&table(&header, &workers));
    for worker in &status.workers {
        if let Some(trouble) = &worker.trouble {
            let _ = writeln!(text, "worker {} refuses new calls: {trouble}", worker.slot);
        }
    }
    text.push_str(&shards(status));
    text.push_str(&refused(&status.refused_total));
    text.push_str(&counters(status));
    text
}

/// Whether new calls are taken, and why not.
fn standing(status: &Status) -> &str {
    match (&status.gave_up, status.draining, status.ready, status.maintenance) {
        (Some(gave_up), ..) => gave_up,
        (None, true, ..) => "being drained: new calls are refused",
        (None, false, false, _) => "not ready: no worker takes calls",
        (None, false, true, true) => "under maintenance: the call router refuses new calls",
        (None, false, true, false) => "ready",
    }
}

/// `voxring recycle` and `upgrade`.
pub fn change(change: &Change) -> String {
    let (why, state) = (printable(&change.why), change.state.name());
    match &change.error {
        Some(error) => {
            format!("change of worker ({why}): {state}, the old one goes on: {}\n", printable(error))
        }
        None => format!("change of worker ({why}): {state}\n"),
    }
}

/// Refused calls and connections by rule, the most frequent first.
fn refused(totals: &BTreeMap<String, u64>) -> String {
    let mut totals: Vec<_> = totals.iter().collect();
    totals.sort_by_key(|(rule, count)| (Reverse(**count), *rule));
    let rows: Vec<_> =
        totals.into_iter().map(|(rule, count)| vec![count.to_string(), rule.clone()]).collect();
    if rows.is_empty() { String::new() } else { format!("\n{}", table(&["REFUSED", "BY RULE"], &rows)) }
}

fn listeners(listeners: &[ListenerStatus]) -> String {
    let row = |l: &ListenerStatus| vec![l.role.clone(), l.transport.name().to_owned(), l.address.to_string()];
    table(&["ROLE", "TRANSPORT", "ADDRESS"], &listeners.iter().map(row).collect::<Vec<_>>())
}

/// The node's certificate, its authorities and their revocation lists, and how long each is good.
fn certificate(status: Option<&CertificateStatus>) -> String {
    let Some(status) = status else { return String::new() };
    let row = |what: &str, date: &CertificateDate| {
        let until = date.until.clone().unwrap_or_else(|| "-".to_owned());
        let left = match date.days_left {
            None => "not said: expired".to_owned(),
            Some(days) if days < 0 => "expired".to_owned(),
            Some(days) => format!("{days} days"),
        };
        vec![what.to_owned(), date.subject.clone(), until, left]
    };
    let mut rows = vec![row("certificate", &status.certificate)];
    rows.extend(status.authorities.iter().map(|date| row("authority", date)));
    rows.extend(status.revocation_lists.iter().map(|date| row("revocations", date)));
    let names = printable(&status.names.join(", "));
    format!("TLS as {names}\n{}\n", table(&["FILE", "OF", "GOOD UNTIL", "LEFT"], &rows))
}

/// `voxring reload`.
pub fn reload(report: &ReloadReport) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        let _ = writeln!(text, "error: {}", printable(problem));
    }
    if !report.problems.is_empty() {
        text.push_str("nothing was changed\n");
        return text;
    }
    let changed = report.applied.len();
    let _ = writeln!(text, "reloaded; {changed} setting{} changed", if changed == 1 { "" } else { "s" });
    for key in &report.applied {
        let _ = writeln!(text, "  in force: {key}");
    }
    for key in &report.needs_restart {
        let _ = writeln!(text, "  needs a restart: {key}");
    }
    text
}

/// `voxring call-router get` and `set`.
pub fn call_router(report: &CallRouterReport) -> String {
    let rows: Vec<_> = report
        .settings
        .iter()
        .map(|setting| {
            // Words without quotes, as they are typed.
            let value = setting.value.as_str().map_or_else(|| setting.value.to_string(), str::to_owned);
            vec![setting.key.clone(), value, setting.origin.clone()]
        })
        .collect();
    format!("{}\n{}", table(&["SETTING", "VALUE", "FROM"], &rows), listeners(&report.listeners))
}

/// What router, service and workers met, then what media shards did; each name once, with a column
/// for each that counts it.
fn counters(status: &Status) -> String {
    let mut columns = vec![("front".to_owned(), &status.front_counters)];
    columns.extend(status.workers.iter().map(|worker| (worker.slot.clone(), &worker.counters)));
    let shards = status.workers.iter().flat_map(|worker| {
        worker.shards.iter().map(|shard| (format!("{}{}", worker.slot, shard.index), &shard.counters))
    });
    pivot("COUNTED", &columns) + &pivot("SHARD COUNTED", &shards.collect::<Vec<_>>())
}

/// A table of counters by name; those that are nought everywhere are left out.
fn pivot(title: &str, columns: &[(String, &BTreeMap<String, u64>)]) -> String {
    let names: BTreeSet<_> = columns
        .iter()
        .flat_map(|(_, set)| set.iter().filter(|(_, value)| **value > 0))
        .map(|(n, _)| n)
        .collect();
    if names.is_empty() {
        return String::new();
    }
    let row = |name: &String| {
        let values = columns.iter().map(|(_, set)| set.get(name).map_or_else(|| "-".into(), u64::to_string));
        std::iter::once(name.clone()).chain(values).collect()
    };
    let header: Vec<_> =
        std::iter::once(title).chain(columns.iter().map(|(whose, _)| whose.as_str())).collect();
    format!("\n{}", table(&header, &names.into_iter().map(row).collect::<Vec<_>>()))
}

/// The shards of all workers.
fn shards(status: &Status) -> String {
    let shards = status.workers.iter().flat_map(|w| w.shards.iter().map(|shard| (w.slot.as_str(), shard)));
    let rows: Vec<_> = shards
        .map(|(slot, shard)| {
            vec![
                format!("{slot}{}", shard.index),
                String::from(shard.ports),
                shard.backend.clone(),
                shard.cpu.map_or_else(|| "-".to_owned(), |cpu| cpu.to_string()),
                shard.legs.to_string(),
            ]
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{}", table(&["SHARD", "RTP PORTS", "BACKEND", "CPU", "LEGS"], &rows));
    let reasons = status.workers.iter().flat_map(|w| &w.shards).filter_map(|s| s.backend_reason.as_deref());
    for reason in reasons.collect::<BTreeSet<_>>() {
        let _ = writeln!(text, "not on io_uring: {reason}");
    }
    text
}

/// `voxring calls`.
pub fn calls(calls: &[CallInfo]) -> String {
    if calls.is_empty() {
        return "no calls\n".to_owned();
    }
    let rows: Vec<_> = calls
        .iter()
        .flat_map(|call| std::iter::once(caller_row(call)).chain(call.callee.as_ref().map(callee_row)))
        .collect();
    table(
        &[
            "SLOT", "TIME", "STATE", "MAILBOX", "FROM", "TO", "GATEWAY", "SECURITY", "CODEC", "MEDIA", "RX",
            "TX", "LOST", "JITTER", "CALL-ID",
        ],
        &rows,
    )
}

fn caller_row(call: &CallInfo) -> Vec<String> {
    let drains = call.drain_left_s.map(|left| format!(" draining, {} left", clock(left)));
    let head = [
        format!("{}{}", call.slot, drains.unwrap_or_default()),
        clock(call.duration_s),
        call.state.clone(),
        call.mailbox.clone().unwrap_or_else(|| "-".to_owned()),
        call.from.clone(),
        call.to.clone(),
        call.gateway.clone(),
        call.security.clone(),
    ];
    let media = media_cells(call.codec, call.remote_media, call.stats.as_ref());
    head.into_iter().chain(media).chain([call.call_id.clone()]).collect()
}

/// The far side stands in a row of its own below the caller's.
fn callee_row(callee: &CalleeInfo) -> Vec<String> {
    let head = [
        String::new(),
        String::new(),
        "> callee".to_owned(),
        String::new(),
        format!("route {}", callee.route),
        callee.number.clone(),
        callee.gateway.clone(),
        callee.security.clone(),
    ];
    let media = media_cells(callee.codec, callee.remote_media, callee.stats.as_ref());
    head.into_iter().chain(media).chain([callee.call_id.clone()]).collect()
}

fn media_cells(codec: Option<Codec>, remote: Option<SocketAddr>, stats: Option<&LegStats>) -> [String; 6] {
    let stat = |of: fn(&LegStats) -> String| stats.map_or_else(|| "-".to_owned(), of);
    [
        match codec {
            Some(Codec::Pcmu) => "PCMU",
            Some(Codec::Pcma) => "PCMA",
            None => "-",
        }
        .to_owned(),
        remote.map_or_else(|| "-".to_owned(), |peer| peer.to_string()),
        stat(|stats| stats.rx_packets.to_string()),
        stat(|stats| stats.tx_packets.to_string()),
        stat(|stats| stats.lost.to_string()),
        // RTP timestamp units at 8000 Hz.
        stat(|stats| format!("{}.{} ms", stats.jitter / 8, stats.jitter % 8 * 10 / 8)),
    ]
}

/// `voxring mailbox list` and `show`.
pub fn mailboxes(mailboxes: &[MailboxInfo]) -> String {
    if mailboxes.is_empty() {
        return "no mailboxes; create one with: voxring mailbox add NUMBER --name NAME\n".to_owned();
    }
    let rows: Vec<_> = mailboxes
        .iter()
        .map(|mailbox| {
            vec![
                mailbox.number.clone(),
                mailbox.name.clone(),
                mailbox.unread.to_string(),
                mailbox.messages.to_string(),
                mailbox.missed.to_string(),
                if mailbox.greeting { "own" } else { "built-in" }.to_owned(),
            ]
        })
        .collect();
    table(&["NUMBER", "NAME", "UNREAD", "MESSAGES", "MISSED CALLS", "GREETING"], &rows)
}

/// `voxring message list`.
pub fn messages(messages: &[Message]) -> String {
    if messages.is_empty() {
        return "no messages\n".to_owned();
    }
    let rows: Vec<_> = messages
        .iter()
        .map(|message| {
            vec![
                message.id.to_string(),
                moment(message.started_ms),
                match message.kind {
                    MessageKind::Voice => format!("{:.1} s", message.duration_ms as f64 / 1000.0),
                    MessageKind::Missed => "missed".to_owned(),
                },
                if message.read { "read" } else { "new" }.to_owned(),
                match (message.caller_name.as_str(), message.caller.as_str()) {
                    ("", "") => "anonymous".to_owned(),
                    ("", caller) => caller.to_owned(),
                    (name, caller) => format!("{name} <{caller}>"),
                },
                message.called.clone(),
                message.diversion_reason.clone(),
            ]
        })
        .collect();
    table(&["ID", "WHEN (UTC)", "LENGTH", "STATE", "CALLER", "CALLED", "DIVERSION"], &rows)
}

/// `2026-11-22 10:14:58` in UTC from Unix milliseconds.
fn moment(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|at| at.format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second]")).ok())
        .unwrap_or_else(|| format!("{seconds} s"))
}

/// `m:ss`.
fn clock(seconds: u64) -> String {
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// `3 d 4 h`, `4 h 5 min`, `5 min 6 s` or `6 s`.
fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::MessageId;

    /// Goal: columns line up, words left, numbers right. Method: a table drawn by hand.
    #[test]
    fn columns_line_up_with_numbers_on_the_right() {
        let rows =
            [vec!["1001".into(), "Ann".into(), "7".into()], vec!["12".into(), "Bo".into(), "12".into()]];
        assert_eq!(
            table(&["NUMBER", "NAME", "N"], &rows),
            "NUMBER  NAME   N\n  1001  Ann    7\n    12  Bo    12\n"
        );
    }

    /// Goal: each counter stands in one line, beside the other counts of the same, without those that
    /// nobody has met. Method: two that count, drawn by hand.
    #[test]
    fn counters_of_the_same_name_share_a_line() {
        let set = |values: &[(&str, u64)]| values.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        let (front, a): (BTreeMap<_, _>, BTreeMap<_, _>) =
            (set(&[("tls_expired", 3), ("idle", 0)]), set(&[("tls_expired", 0), ("idle", 0), ("busy", 12)]));
        let text = pivot("COUNTED", &[("front".into(), &front), ("A".into(), &a)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines, ["", "COUNTED      front   A", "busy             -  12", "tls_expired      3   0"]);
    }

    /// Goal: a caller's name cannot steer the operator's terminal. Method: one with an escape sequence.
    #[test]
    fn control_characters_of_a_peer_are_not_printed() {
        let text = table(&["NAME"], &[vec!["a\u{1b}[2Jb\nc".into()]]);
        assert_eq!(text, "NAME\na\u{FFFD}[2Jb\u{FFFD}c\n");
    }

    /// Goal: a listing shows when, how long, from whom. Method: a message of a known time
    /// (1000000000 s is 2001-09-09 01:46:40 UTC).
    #[test]
    fn a_message_is_listed_with_time_length_and_caller() {
        let message = Message {
            id: MessageId::new(std::time::UNIX_EPOCH, 1),
            mailbox: "1001".into(),
            kind: MessageKind::Voice,
            caller: "2001".into(),
            caller_name: "Bo".into(),
            called: "1001".into(),
            diversion_reason: "no-answer".into(),
            call_id: "x".into(),
            started_ms: 1_000_000_000_000,
            duration_ms: 7_260,
            read: false,
        };
        let text = messages(&[message]);
        assert!(text.contains("2001-09-09 01:46:40  7.3 s   new    Bo <2001>  "), "{text}");
    }

    /// Goal: times read well at any size. Method: arithmetic at the borders.
    #[test]
    fn uptime_uses_its_two_largest_units() {
        assert_eq!(uptime(59), "59 s");
        assert_eq!(uptime(61), "1 min 1 s");
        assert_eq!(uptime(3_660), "1 h 1 min");
        assert_eq!(uptime(90_000), "1 d 1 h");
        assert_eq!(clock(61), "1:01");
    }
}
