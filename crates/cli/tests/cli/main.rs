//! The real binary on real files. Each module is one promise to users: what a run survives
//! (`reliability`), what bad input gets (`bad_input`), that plans keep to the budget (`planning`),
//! and what every verb gives (`verbs`).

mod bad_input;
mod planning;
mod reliability;
mod sandbox;
mod verbs;
