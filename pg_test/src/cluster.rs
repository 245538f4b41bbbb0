//! A throwaway server: its own data directory, socket directory and port, run by an
//! unprivileged user, removed when dropped.

use crate::client::Client;
use crate::error::{Error, Result, SqlError};
use crate::install::{Install, OsUser, run};
use crate::process::{alive, children, signal, wait_until};
use crate::template::{SETTINGS_FILE, create_data_dir};
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a server may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a cluster is to be like.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// A short name, part of its directory's name.
    pub name: String,
    /// Settings beyond the harness's own; they win over those.
    pub settings: Vec<(String, String)>,
    /// Page checksums, on by default: they catch a torn or misplaced page.
    pub data_checksums: bool,
}

impl ClusterOptions {
    /// Options with a name and nothing else special.
    pub fn new(name: &str) -> ClusterOptions {
        ClusterOptions { name: name.into(), settings: Vec::new(), data_checksums: true }
    }

    /// Adds a setting.
    pub fn set(mut self, name: &str, value: &str) -> ClusterOptions {
        self.settings.push((name.into(), value.into()));
        self
    }
}

/// The shutdown modes of PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for clients.
    Smart,
    /// Disconnects clients, writes a checkpoint.
    Fast,
    /// As a crash.
    Immediate,
}

/// A running (or stopped) server of our own.
pub struct Cluster {
    install: Install,
    dir: PathBuf,
    socket_dir: PathBuf,
    port: u16,
    settings: Vec<(String, String)>,
    postmaster: Option<Child>,
    kept: bool,
}

impl Cluster {
    /// Creates and starts a cluster of the version `FORESHARD_PG` names.
    pub fn start(options: &ClusterOptions) -> Result<Cluster> {
        Cluster::start_with(Install::from_env()?, options)
    }

    /// Creates and starts a cluster of a given installation.
    pub fn start_with(install: Install, options: &ClusterOptions) -> Result<Cluster> {
        let all = clusters_dir(&install);
        fs::create_dir_all(&all)?;
        sweep(&all);
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = all.join(format!("{}-{}-{number}", options.name, std::process::id()));
        create_private_dir(&install, &dir)?;
        let mut cluster = Cluster {
            socket_dir: create_socket_dir(&install)?,
            port: free_port()?,
            dir,
            settings: Vec::new(),
            postmaster: None,
            kept: false,
            install,
        };
        fs::write(cluster.dir.join("socket_dir"), cluster.socket_dir.as_os_str().as_encoded_bytes())?;
        create_private_dir(&cluster.install, &cluster.dir.join("tablespaces"))?;
        create_data_dir(&cluster.install, options.data_checksums, &cluster.data_dir())?;
        cluster.settings = cluster.base_settings();
        cluster.change_settings(&options.settings)?;
        cluster.start_again()?;
        Ok(cluster)
    }

    fn base_settings(&self) -> Vec<(String, String)> {
        let socket_dir = self.socket_dir.to_string_lossy().into_owned();
        let port = self.port.to_string();
        [
            ("listen_addresses", ""),
            ("unix_socket_directories", &socket_dir),
            ("unix_socket_permissions", "0700"),
            ("port", &port),
            ("shared_preload_libraries", "foreshard"),
            ("shared_buffers", "128MB"),
            ("max_worker_processes", "32"),
            ("max_prepared_transactions", "16"),
            ("log_line_prefix", "%m [%p] %b %d "),
            ("log_statement", "none"),
            ("datestyle", "iso"),
            ("timezone", "UTC"),
            // The disk of a test machine may be fuller than a server's should be.
            ("foreshard.min_free_disk", "0"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
    }

    /// Remembers settings and writes the file the server includes.
    fn change_settings(&mut self, changes: &[(String, String)]) -> Result<()> {
        for (name, value) in changes {
            self.settings.retain(|(known, _)| known != name);
            self.settings.push((name.clone(), value.clone()));
        }
        let path = self.data_dir().join(SETTINGS_FILE);
        let lines =
            self.settings.iter().map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")));
        // In one piece: a process that is late with the last reload must not read half of it, and so its defaults.
        let whole = path.with_extension("new");
        fs::write(&whole, lines.collect::<String>())?;
        self.install.user.give(&whole)?;
        fs::rename(&whole, &path)?;
        Ok(())
    }

    /// Changes settings and reloads; those that need a restart take effect at the next one.
    pub fn set_and_reload(&mut self, changes: &[(&str, &str)]) -> Result<()> {
        let changes: Vec<(String, String)> =
            changes.iter().map(|&(name, value)| (name.into(), value.into())).collect();
        self.change_settings(&changes)?;
        let mut client = self.connect("postgres")?;
        // The configuration's load time tells when the postmaster has read the file; the
        // other processes get their signal right after.
        let before = client.query_one("SELECT pg_conf_load_time()")?;
        client.exec("SELECT pg_reload_conf()")?;
        wait_until("the settings are loaded", PATIENCE, || {
            let mut fresh = self.connect("postgres")?;
            Ok(fresh.query_one("SELECT pg_conf_load_time()")? != before)
        })
    }

    /// Starts the server of a stopped or crashed cluster and waits until it accepts clients.
    pub fn start_again(&mut self) -> Result<()> {
        let command = self.install.user.command(&self.install.program("postgres"));
        self.start_by(command)
    }

    /// The same, but names of hosts are looked up as a file says that takes the place of resolv.conf; false: whoever is not root cannot
    /// arrange that, and the server was not started.
    pub fn start_with_names(&mut self, resolv_conf: &Path) -> Result<bool> {
        let Some((uid, gid)) = self.install.user.drop_to else { return Ok(false) };
        let enter = |then: &str| {
            let mut command = OsUser { drop_to: None }.command(Path::new("unshare"));
            let script = format!(
                "mount --bind \"$0\" /etc/resolv.conf && exec setpriv --reuid={uid} --regid={gid} --clear-groups {then}"
            );
            command.args(["-m", "sh", "-c", &script]).arg(resolv_conf);
            command
        };
        if !enter("true").status().is_ok_and(|status| status.success()) {
            return Ok(false);
        }
        let mut command = enter("\"$@\"");
        command.arg(self.install.program("postgres"));
        self.start_by(command).map(|()| true)
    }

    fn start_by(&mut self, mut command: Command) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let child = command
            .arg("-D")
            .arg(self.data_dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for us; the server gets its own shutdown.
            .process_group(0)
            .spawn()?;
        self.postmaster = Some(child);
        self.wait_ready(PATIENCE)
    }

    /// Waits until the server accepts clients.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<()> {
        let conninfo = self.conninfo("postgres");
        let log = self.log_path();
        let postmaster = &mut self.postmaster;
        wait_until("the server accepts clients", timeout, || {
            if let Some(child) = postmaster
                && let Some(status) = child.try_wait()?
            {
                return Err(Error::new(
                    format!("The server ended while starting ({status})."),
                    format!("The end of its log:\n{}", tail(&log, 15)),
                ));
            }
            Ok(Client::connect(&conninfo).is_ok())
        })
    }

    /// Stops the server.
    pub fn stop(&mut self, mode: StopMode) -> Result<()> {
        let Some(mut child) = self.postmaster.take() else {
            return Ok(());
        };
        let pid = child.id().cast_signed();
        signal(
            pid,
            match mode {
                StopMode::Smart => libc::SIGTERM,
                StopMode::Fast => libc::SIGINT,
                StopMode::Immediate => libc::SIGQUIT,
            },
        );
        let stopped = wait_until("the server stops", PATIENCE, || Ok(child.try_wait()?.is_some()));
        if stopped.is_err() {
            kill_all(&mut child)?;
        }
        stopped
    }

    /// Stops (fast) and starts the server.
    pub fn restart(&mut self) -> Result<()> {
        self.stop(StopMode::Fast)?;
        self.start_again()
    }

    /// Kills the postmaster with SIGKILL and waits until all its children are gone.
    pub fn kill9_postmaster(&mut self) -> Result<()> {
        match self.postmaster.take() {
            Some(mut child) => kill_all(&mut child),
            None => Ok(()),
        }
    }

    /// Kills one server process with SIGKILL; the postmaster then restarts the others.
    pub fn kill9(&self, pid: i32) -> Result<()> {
        if !children(self.postmaster_pid()).contains(&pid) {
            return Err(Error::new(format!("Process {pid} is not one of this server."), ""));
        }
        signal(pid, libc::SIGKILL);
        wait_until("a killed process is gone", PATIENCE, || Ok(!alive(pid)))
    }

    /// The postmaster's process id, 0 when stopped.
    pub fn postmaster_pid(&self) -> i32 {
        self.postmaster.as_ref().map_or(0, |child| child.id().cast_signed())
    }

    /// Connects as superuser `postgres`.
    pub fn connect(&self, database: &str) -> std::result::Result<Client, SqlError> {
        Client::connect(&self.conninfo(database))
    }

    /// The libpq connection string of a database.
    pub fn conninfo(&self, database: &str) -> String {
        format!("host={} port={} user=postgres dbname={database}", self.socket_dir.display(), self.port)
    }

    /// The port number, which names the socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the socket.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The server's log file.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The server's log so far.
    pub fn log_contents(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The installation this server runs from.
    pub fn install(&self) -> &Install {
        &self.install
    }

    /// A new directory fit for CREATE TABLESPACE.
    pub fn make_tablespace_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join("tablespaces").join(name);
        create_private_dir(&self.install, &dir)?;
        Ok(dir)
    }

    /// A client program of this installation, pointed at a database.
    pub fn client_command(&self, program: &str, database: &str) -> Command {
        let mut command = self.install.user.command(&self.install.program(program));
        command
            .arg("--host")
            .arg(&self.socket_dir)
            .args(["--port", &self.port.to_string(), "--username=postgres"])
            .arg(format!("--dbname={database}"))
            .stdin(Stdio::null());
        command
    }

    /// Runs SQL through `psql -X -At`; its standard output.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let output = run(self.client_command("psql", database).args([
            "-X",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            sql,
        ]))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `pg_dump --schema-only`, without the lines that differ from run to run.
    pub fn pg_dump_schema(&self, database: &str) -> Result<String> {
        let output = run(self.client_command("pg_dump", database).arg("--schema-only"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let same = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
        Ok(text.lines().filter(same).collect::<Vec<_>>().join("\n"))
    }

    /// Writes `<run directory>/<name>.env`, from which the scripts find this cluster.
    pub fn publish(&self, name: &str, database: &str) -> Result<()> {
        let text = format!(
            "CLUSTER_DIR='{}'\nCLUSTER_SOCKET='{}'\nCLUSTER_PORT='{}'\nCLUSTER_DB='{database}'\nCLUSTER_BIN='{}'\n",
            self.dir.display(),
            self.socket_dir.display(),
            self.port,
            self.install.bin_dir.display()
        );
        fs::write(self.dir.join("keep"), "")?;
        fs::write(self.install.run_dir.join(format!("{name}.env")), text)?;
        Ok(())
    }

    /// Leaves the server running. Publish it first, or nobody finds it again.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Some(mut child) = self.postmaster.take() {
            signal(child.id().cast_signed(), libc::SIGQUIT);
            let ended =
                wait_until("the server stops", Duration::from_secs(10), || Ok(child.try_wait()?.is_some()));
            if ended.is_err() {
                // Nothing more can be done for a process that survives this.
                let _ = kill_all(&mut child);
            }
        }
        // A test that fails may want its cluster for a post-mortem.
        if std::env::var_os("FORESHARD_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
        let _ = fs::remove_dir_all(&self.socket_dir);
    }
}

fn kill_all(child: &mut Child) -> Result<()> {
    let pid = child.id().cast_signed();
    // Stopped first, so that no child is born between the list and the kill.
    signal(pid, libc::SIGSTOP);
    let family = children(pid);
    signal(pid, libc::SIGKILL);
    child.wait()?;
    let gone = || Ok(!family.iter().any(|&pid| alive(pid)));
    // Children notice the postmaster's death by themselves, unless they are busy.
    if wait_until("children end", Duration::from_secs(3), gone).is_err() {
        family.iter().for_each(|&pid| signal(pid, libc::SIGKILL));
    }
    wait_until("the server's processes are gone", PATIENCE, gone)
}

fn create_private_dir(install: &Install, dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    install.user.give(dir)
}

/// A short path, since a socket's path is limited to 107 bytes.
fn create_socket_dir(install: &Install) -> Result<PathBuf> {
    // Random per process and call; the directory is new or the creation fails.
    let random = RandomState::new().build_hasher().finish();
    let path = PathBuf::from(format!("/tmp/foreshard-{:010x}", random >> 24));
    create_private_dir(install, &path).map_err(|error| {
        Error::new(
            format!("No directory for a socket can be made in /tmp. {error}"),
            "Is /tmp writable and not full?",
        )
    })?;
    Ok(path)
}

/// A port number nobody listens on. Only the socket's name uses it, since the server does
/// not listen on TCP.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Where clusters lie: `FORESHARD_CLUSTERS`, else beside the installation.
fn clusters_dir(install: &Install) -> PathBuf {
    std::env::var_os("FORESHARD_CLUSTERS").map_or_else(|| install.run_dir.join("clusters"), PathBuf::from)
}

/// Removes clusters whose harness process died without cleaning up.
fn sweep(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let dir = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.rsplit('-').nth(1).and_then(|pid| pid.parse().ok());
        if dir.join("keep").exists() || owner.is_none_or(alive) {
            continue;
        }
        let pid_file = fs::read_to_string(dir.join("data/postmaster.pid")).unwrap_or_default();
        if let Some(Ok(pid)) = pid_file.lines().next().map(str::parse::<i32>) {
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // The number may have been reused: only a server of this very directory.
            if command.contains(&*dir.to_string_lossy()) {
                signal(pid, libc::SIGQUIT);
                let _ = wait_until("a leftover ends", Duration::from_secs(5), || Ok(!alive(pid)));
            }
        }
        if let Ok(socket_dir) = fs::read_to_string(dir.join("socket_dir"))
            && socket_dir.starts_with("/tmp/foreshard-")
        {
            let _ = fs::remove_dir_all(socket_dir);
        }
        let _ = fs::remove_dir_all(dir);
    }
}

fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
