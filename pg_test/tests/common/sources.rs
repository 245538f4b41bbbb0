//! What the tests of the resolver share: a shop, and how it is asked.

use foreshard_test::{Client, Cluster, Result};

/// Customers 1 to 20 with three orders each, an invoice per order and one for two of them; one customer has none.
pub const SHOP: &str = "\
CREATE SCHEMA shop;
CREATE TABLE shop.orders (order_id bigint PRIMARY KEY, customer_id int NOT NULL, note text);
CREATE TABLE shop.invoices (invoice text PRIMARY KEY, order_id bigint NOT NULL, amount numeric);
CREATE INDEX ON shop.orders (customer_id); CREATE INDEX ON shop.invoices (order_id);
INSERT INTO shop.orders SELECT g, (g - 1) / 3 + 1, 'n' || g FROM generate_series(1, 57) g;
INSERT INTO shop.invoices SELECT 'I' || g, g, g * 10 FROM generate_series(1, 57) g;
CREATE TABLE shop.direct AS SELECT o.customer_id, i.invoice, i.amount FROM shop.orders o JOIN shop.invoices i USING (order_id);
CREATE TABLE shop.delay (s float8); INSERT INTO shop.delay VALUES (0);
CREATE FUNCTION shop.wait() RETURNS bool LANGUAGE sql VOLATILE AS 'SELECT pg_catalog.pg_sleep(s) IS NOT NULL FROM shop.delay';";

/// Orders of customers.
pub const ORDERS: &str = "SELECT customer_id, order_id FROM shop.orders WHERE customer_id = ANY ($1)";
/// Registers a source of graph `shop`; `more` are arguments.
pub fn add(name: &str, from: &str, to: &str, query: &str, more: &str) -> String {
    format!("SELECT foreshard.add_data_source('shop', '{name}', '{from}', '{to}', $q${query}$q${more})")
}

/// Resolves in graph `shop`.
pub fn resolve(input: &str, from: &str, to: &str) -> String {
    format!(
        "SELECT input, output, attributes FROM foreshard.resolve('shop', '{from}', ARRAY[{input}], '{to}')"
    )
}

/// A connection as a role.
pub fn connect_as(cluster: &Cluster, role: &str) -> Result<Client> {
    Ok(Client::connect(&cluster.conninfo("postgres").replace("user=postgres", &format!("user={role}")))?)
}
