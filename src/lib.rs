//! foreshard lets a PostgreSQL database place its own data. ARCHITECTURE.md has the map.

mod api;
mod birth;
mod catalog;
mod engine;
mod graph;
mod mover;
mod observe;
mod pg;
mod planner;
mod resolve;
mod worker;

use pgrx::prelude::*;

pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/schema.sql", bootstrap);
extension_sql_file!("../sql/nodes.sql", name = "nodes", requires = [api::people::is_open]);
extension_sql_file!("../sql/citus.sql", name = "citus", requires = ["nodes"]);
extension_sql_file!(
    "../sql/views.sql",
    name = "views",
    requires = ["citus", api::observation::verification_progress, api::people::total_bytes]
);
extension_sql_file!("../sql/dependencies.sql", name = "dependencies", requires = ["views"]);
extension_sql_file!("../sql/graphs.sql", name = "graphs", requires = ["dependencies"]);
extension_sql_file!("../sql/resolver.sql", name = "resolver", requires = ["graphs"]);
extension_sql_file!("../sql/comments.sql", name = "comments", requires = ["resolver"]);
extension_sql_file!(
    "../sql/people.sql",
    name = "people",
    requires = ["comments", api::people::worker_states]
);
extension_sql_file!("../sql/functions.sql", name = "functions", requires = ["comments"], finalize);

/// Order matters: settings first, then what needs `shared_preload_libraries`.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::guc::register();
    pg::graph::call::register(graph::changed::statement);
    pg::compat::explain::register(catalog::described::scanned, catalog::described::written);
    if pg::is_preloading() {
        pg::shmem::register();
        pg::region::register();
        pg::sources::register();
        observe::register();
        pg::partition::direct::register();
        pg::mirror::register();
        pg::hooks::register(catalog::shadow::sources_under_way, catalog::leave_all);
        if !pg::is_binary_upgrade() {
            worker::launcher::register();
        }
    }
}
