//! Data directories: one `initdb` per version and option, then copies of it.

use crate::error::Result;
use crate::install::{Install, run};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The file in a data directory that holds the harness's settings.
pub const SETTINGS_FILE: &str = "harness.conf";

/// Makes `data` a fresh data directory.
pub fn create_data_dir(install: &Install, data_checksums: bool, data: &Path) -> Result<()> {
    let template = template(install, data_checksums)?;
    run(install.user.command(Path::new("cp")).arg("-a").arg(&template).arg(data))?;
    Ok(())
}

/// The template, made when it is missing. Tests run side by side, hence the lock.
fn template(install: &Install, data_checksums: bool) -> Result<PathBuf> {
    let all = install.run_dir.join("templates");
    fs::create_dir_all(&all)?;
    fs::set_permissions(&all, fs::Permissions::from_mode(0o755))?;
    install.user.give(&all)?;
    let lock = File::create(install.run_dir.join(".templates.lock"))?;
    lock.lock()?;
    let version = run(std::process::Command::new(install.program("postgres")).arg("--version"))?;
    let version =
        String::from_utf8_lossy(&version.stdout).split_whitespace().nth(2).unwrap_or("unknown").to_string();
    let template = all.join(format!("{version}-{}", u8::from(data_checksums)));
    if !template.exists() {
        let fresh = all.join("new");
        if fresh.exists() {
            fs::remove_dir_all(&fresh)?;
        }
        initdb(install, data_checksums, &fresh)?;
        fs::rename(&fresh, &template)?;
    }
    Ok(template)
}

fn initdb(install: &Install, data_checksums: bool, data: &Path) -> Result<()> {
    let mut command = install.user.command(&install.program("initdb"));
    command
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8"])
        .args(["--locale=C.UTF-8", "--no-sync", "--no-instructions", "-D"])
        .arg(data);
    match (data_checksums, install.major >= 18) {
        (true, _) => {
            command.arg("--data-checksums");
        }
        (false, true) => {
            command.arg("--no-data-checksums");
        }
        (false, false) => {}
    }
    run(&mut command)?;
    let config = data.join("postgresql.conf");
    let mut text = fs::read_to_string(&config)?;
    text.push_str(&format!("\ninclude '{SETTINGS_FILE}'\n"));
    fs::write(&config, text)?;
    Ok(())
}
