//! From the queue to the ledger: outcomes, settlement, and what is parked.

use crate::support::{
    amqp::{Client, text},
    daemon::Setup,
    flow::{Flow, work_off},
    ledger::{Kind, Place},
    rabbit,
};

#[test]
fn messages_become_balances() {
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    let mut flow = Flow::new(1);
    flow.publish(&client, &setup, 5000);
    work_off(&client, &setup, daemon);
    flow.assert_credited_once(&client, &setup);
    let _ = text;
}
