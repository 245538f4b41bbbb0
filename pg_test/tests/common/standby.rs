//! A streaming standby beside a cluster, sharing its socket directory under another port.

use super::{PATIENCE, SHARDS, Server};
use foreshard_test::install::run;
use foreshard_test::process::signal;
use foreshard_test::{Client, Cluster, Result, SqlError, wait_until};
use std::fs::File;
use std::process::{Child, Stdio};
use std::time::Duration;

/// The running standby; killed when dropped.
pub struct Standby {
    child: Child,
    conninfo: String,
    port: u16,
}

impl Standby {
    /// Takes a base backup and starts it.
    pub fn start(primary: &Cluster) -> Result<Standby> {
        let install = primary.install();
        let data_dir = primary.data_dir();
        let home = data_dir.parent().unwrap_or(&data_dir);
        let copy = home.join("standby");
        let mut backup = install.user.command(&install.program("pg_basebackup"));
        backup.arg("-h").arg(primary.socket_dir()).args([
            "-p",
            &primary.port().to_string(),
            "-U",
            "postgres",
        ]);
        backup.args(["-R", "-X", "stream", "-c", "fast", "-D"]).arg(&copy);
        for name in SHARDS {
            let from = home.join("tablespaces").join(name);
            let to = home.join("tablespaces").join(format!("{name}_standby"));
            backup.arg("-T").arg(format!("{}={}", from.display(), to.display()));
        }
        run(&mut backup)?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = File::create(home.join("standby.log"))?;
        let child = install
            .user
            .command(&install.program("postgres"))
            .arg("-D")
            .arg(&copy)
            .args(["-c", &format!("port={port}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let conninfo =
            format!("host={} port={port} user=postgres dbname=postgres", primary.socket_dir().display());
        let standby = Standby { child, conninfo, port };
        wait_until("the standby accepts clients", PATIENCE, || Ok(standby.connect().is_ok()))?;
        Ok(standby)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connects as superuser.
    pub fn connect(&self) -> std::result::Result<Client, SqlError> {
        Client::connect(&self.conninfo)
    }

    /// Waits until everything the primary has written is replayed.
    pub fn wait_replayed(&mut self, primary: &mut Server) -> Result<()> {
        let lsn = primary.query("SELECT pg_current_wal_flush_lsn()")?;
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        let mut client = self.connect()?;
        wait_until("the standby has caught up", PATIENCE, || Ok(client.query_one(&sql)? == "t"))
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        signal(self.child.id().cast_signed(), libc::SIGQUIT);
        let ended =
            wait_until("the standby ends", Duration::from_secs(10), || Ok(self.child.try_wait()?.is_some()));
        if ended.is_err() {
            let _ = self.child.kill();
        }
    }
}
