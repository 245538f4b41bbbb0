//! COPY, in and out, in the middle.

use crate::grid::{Cell, same};
use crate::support::wait_for;
use foreshard_test::{Client, Error, Result, SqlError};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// Wide enough that two rows are a message to the server, and that what is read does not fit into buffers.
const WIDE_BYTES: usize = 40_000;
/// Rows sent before the crossing (the end of the last message stays in libpq's buffer), and after.
const ROWS: (usize, usize) = (5, 2);

/// A COPY FROM STDIN that another thread feeds; it ends when the sender is gone.
pub struct Feed {
    lines: Sender<String>,
    thread: JoinHandle<(Client, std::result::Result<u64, SqlError>)>,
}

impl Feed {
    fn start(mut client: Client, sql: &'static str) -> Feed {
        let (lines, received) = channel::<String>();
        let thread = std::thread::spawn(move || {
            let fill = |buffer: &mut Vec<u8>| match received.recv() {
                Ok(line) => {
                    buffer.extend_from_slice(line.as_bytes());
                    true
                }
                Err(_) => false,
            };
            let copied = client.copy_in(sql, fill);
            (client, copied)
        });
        Feed { lines, thread }
    }

    fn send(&self, line: String) -> Result<()> {
        self.lines.send(line).map_err(|_| Error::new("The COPY has ended already.", ""))
    }

    fn end(self) -> Result<(Client, u64)> {
        drop(self.lines);
        let (client, copied) = self.thread.join().map_err(|_| Error::new("The COPY's thread died.", ""))?;
        Ok((client, copied?))
    }
}

fn line(cell: &Cell, n: usize) -> String {
    let id = cell.free(n);
    format!("{id}\t{}\n", id.repeat(WIDE_BYTES / id.len()))
}

/// Some rows have reached the server, more are to come.
pub fn in_open(cell: &mut Cell) -> Result<()> {
    let mut client = cell.connect()?;
    let pid = client.backend_pid();
    cell.holder = format!("pid {pid} ");
    client.exec("BEGIN")?;
    let feed = Feed::start(client, "COPY t (id, v) FROM STDIN");
    for n in 0..ROWS.0 {
        feed.send(line(cell, n))?;
    }
    cell.feed = Some(feed);
    let writes = format!(
        "SELECT count(*) > 0 FROM pg_locks l JOIN foreshard.slots s ON s.partition = l.relation \
         WHERE l.pid = {pid} AND l.mode = 'RowExclusiveLock' AND l.granted"
    );
    wait_for(&mut cell.admin, &writes, "t")
}

/// The rest of the rows, another COPY in the same transaction, and its end.
pub fn in_close(cell: &mut Cell) -> Result<()> {
    let feed = cell.feed.take().ok_or_else(|| Error::new("There is no COPY.", ""))?;
    let all = ROWS.0 + ROWS.1;
    for n in ROWS.0..all {
        feed.send(line(cell, n))?;
    }
    let (mut client, copied) = feed.end()?;
    same("rows copied", &copied.to_string(), &all.to_string())?;
    let last = line(cell, all);
    let fill = |buffer: &mut Vec<u8>| {
        buffer.extend_from_slice(last.as_bytes());
        false
    };
    same("rows copied", &client.copy_in("COPY t (id, v) FROM STDIN", fill)?.to_string(), "1")?;
    for n in 0..=all {
        let id = cell.free(n);
        client.exec(&format!(
            "INSERT INTO u (id, v) VALUES ({id}, repeat('{id}', {}))",
            WIDE_BYTES / id.len()
        ))?;
    }
    client.exec("COMMIT")?;
    Ok(())
}

/// What is copied out, padded so that the server cannot send it all before it is read.
fn out_query(table: &str) -> String {
    format!("SELECT id, n, md5(v), repeat('x', {WIDE_BYTES}) FROM {table}")
}

pub fn out_open(cell: &mut Cell) -> Result<()> {
    let rows = cell.admin.exec(&out_query("u"))?.to_text();
    cell.noted = rows.lines().map(|line| line.replace('|', "\t")).collect();
    cell.a.exec(&format!("COPY ({}) TO STDOUT", out_query("t")))?;
    Ok(())
}

/// Everything that was there when the COPY began.
pub fn out_close(cell: &mut Cell) -> Result<()> {
    let mut lines = Vec::new();
    while let Some(line) = cell.a.copy_out_line()? {
        lines.push(line);
    }
    lines.sort_unstable();
    cell.noted.sort_unstable();
    same("what was copied out", &lines.join("\n"), &cell.noted.join("\n"))
}
