//! The `redis` crate, as a program would use it, over as many connections as ours: pipelines of GET and SET, or one command after
//! another.

use std::time::{Duration, Instant};

use ::redis::{Client, Commands, Connection, Pipeline};

use crate::RUN_TIME;

/// Connections of the crate that move values of one size.
pub struct RedisClient {
    connections: Vec<Connection>,
    value: Vec<u8>,
    count: usize,
    /// Values in one pipeline.
    batch: usize,
}

type Work = fn(&mut Connection, &[String], &[u8]);

fn get(connection: &mut Connection, names: &[String], _: &[u8]) {
    let mut pipeline = Pipeline::with_capacity(names.len());
    for name in names {
        pipeline.get(name);
    }
    let values: Vec<Vec<u8>> = pipeline.query(connection).expect("the server answers");
    std::hint::black_box(values);
}

fn set(connection: &mut Connection, names: &[String], value: &[u8]) {
    let mut pipeline = Pipeline::with_capacity(names.len());
    for name in names {
        pipeline.set(name, value).ignore();
    }
    pipeline.query::<()>(connection).expect("the server takes values");
}

fn get_each(connection: &mut Connection, names: &[String], _: &[u8]) {
    for name in names {
        let value: Vec<u8> = connection.get(name).expect("the server answers");
        std::hint::black_box(value);
    }
}

fn set_each(connection: &mut Connection, names: &[String], value: &[u8]) {
    for name in names {
        connection.set::<_, _, ()>(name, value).expect("the server takes values");
    }
}

impl RedisClient {
    /// Connects `connections` times. A pipeline has `batch` values of `value`'s size.
    pub fn connect(port: u16, connections: usize, value: Vec<u8>, count: usize, batch: usize) -> RedisClient {
        let client = Client::open(format!("redis://127.0.0.1:{port}")).expect("a URL");
        let connect = |_| client.get_connection().expect("the server accepts");
        RedisClient { connections: (0..connections).map(connect).collect(), value, count, batch }
    }

    /// GB/s of values stored by pipelines, and by one SET after another. `before` is called before each pass over all values, and not
    /// timed.
    pub fn store(&mut self, before: impl Fn()) -> [f64; 2] {
        [set as Work, set_each].map(|work| self.run(work, &before))
    }

    /// GB/s of values loaded by pipelines, and by one GET after another.
    pub fn load(&mut self) -> [f64; 2] {
        [get as Work, get_each].map(|work| self.run(work, || ()))
    }

    fn run(&mut self, work: Work, before: impl Fn()) -> f64 {
        let names: Vec<String> = (0..self.count).map(|number| format!("crate{number:06}")).collect();
        let share = self.count / self.connections.len();
        let (mut spent, mut bytes) = (Duration::ZERO, 0);
        while spent < RUN_TIME {
            before();
            let began = Instant::now();
            std::thread::scope(|scope| {
                for (connection, names) in self.connections.iter_mut().zip(names.chunks(share)) {
                    let (value, batch) = (&self.value, self.batch);
                    scope.spawn(move || names.chunks(batch).for_each(|names| work(connection, names, value)));
                }
            });
            spent += began.elapsed();
            bytes += self.count * self.value.len();
        }
        bytes as f64 / spent.as_secs_f64() / 1e9
    }
}
