//! Background work of the leader beside webhooks: [`sweeper`] removes aged rows, [`ticker`] advances cluster time while
//! nobody writes, and [`fanout`] hands large publishes to their subscribers.

pub mod fanout;
pub mod sweeper;
pub mod ticker;
