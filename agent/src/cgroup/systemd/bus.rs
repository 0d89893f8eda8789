//! Calls of `org.freedesktop.systemd1.Manager` (org.freedesktop.systemd1(5)) and waiting for the jobs that they start.

use std::time::Duration;

use futures_util::StreamExt;
use zbus::zvariant::{ObjectPath, OwnedObjectPath, Value};
use zbus::{Connection, MatchRule, MessageStream, connection};

use super::{Call, Properties, Property};

const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";
/// systemd's own socket, which works without a D-Bus daemon.
const PRIVATE_SOCKET: &str = "unix:path=/run/systemd/private";
/// How long systemd may take for one job; runc waits as long.
const DEADLINE: Duration = Duration::from_secs(30);

/// The connection, shared by all calls.
#[derive(Default)]
pub(super) struct Bus {
    connection: tokio::sync::Mutex<Option<Connection>>,
}

impl Bus {
    /// Does one thing to a unit and waits until systemd is done with it. After an error the connection is made anew.
    pub(super) async fn call(&self, unit: &str, call: Call) -> Result<(), String> {
        let done = tokio::time::timeout(DEADLINE, async {
            let connection = self.connection().await?;
            let result = run(&connection, unit, call).await;
            if result.is_err() {
                *self.connection.lock().await = None;
            }
            result
        });
        match done.await {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_) => Err(format!("no answer for {} s", DEADLINE.as_secs())),
        }
    }

    async fn connection(&self) -> zbus::Result<Connection> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref() {
            return Ok(connection.clone());
        }
        let connection = match Connection::system().await {
            Ok(connection) => connection,
            Err(_) => connection::Builder::address(PRIVATE_SOCKET)?.p2p().build().await?,
        };
        // Without it systemd sends no signals about jobs.
        manager(&connection, "Subscribe", &()).await?;
        *slot = Some(connection.clone());
        Ok(connection)
    }
}

async fn run(connection: &Connection, unit: &str, call: Call) -> zbus::Result<()> {
    match call {
        Call::Start(properties) => {
            let no_other_units: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
            let body = (unit, "replace", to_values(properties), no_other_units);
            job(connection, "StartTransientUnit", &body, "org.freedesktop.systemd1.UnitExists").await
        }
        Call::Set(properties) => {
            // "runtime": gone after a reboot, like the slice.
            let body = (unit, true, to_values(properties));
            manager(connection, "SetUnitProperties", &body).await.map(drop)
        }
        Call::Stop => job(connection, "StopUnit", &(unit, "replace"), "org.freedesktop.systemd1.NoSuchUnit").await,
    }
}

/// Starts a job and waits for its end. An error of the name `fine` means that there is nothing to do.
async fn job<B>(connection: &Connection, method: &str, body: &B, fine: &str) -> zbus::Result<()>
where
    B: serde::Serialize + zbus::zvariant::DynamicType,
{
    let rule = MatchRule::builder().msg_type(zbus::message::Type::Signal).interface(INTERFACE)?.member("JobRemoved")?;
    // Before the call, so that a job that ends at once is not missed.
    let mut ended = MessageStream::for_match_rule(rule.build(), connection, None).await?;
    let started = match manager(connection, method, body).await {
        Err(zbus::Error::MethodError(name, _, _)) if name.as_str() == fine => return Ok(()),
        other => other?,
    };
    let wanted: OwnedObjectPath = started.body().deserialize()?;
    while let Some(message) = ended.next().await {
        let message = message?;
        let body = message.body();
        let (_, path, _, result): (u32, ObjectPath<'_>, &str, &str) = body.deserialize()?;
        if path != *wanted {
            continue;
        }
        return match result {
            "done" => Ok(()),
            other => Err(zbus::Error::Failure(format!("the job ended with {other:?}"))),
        };
    }
    Err(zbus::Error::Failure("the connection was closed".to_owned()))
}

async fn manager<B>(connection: &Connection, method: &str, body: &B) -> zbus::Result<zbus::Message>
where
    B: serde::Serialize + zbus::zvariant::DynamicType,
{
    connection.call_method(Some(SERVICE), PATH, Some(INTERFACE), method, body).await
}

fn to_values(properties: Properties) -> Vec<(&'static str, Value<'static>)> {
    let value = |property| match property {
        Property::Flag(flag) => Value::from(flag),
        Property::Number(number) => Value::from(number),
        Property::Text(text) => Value::from(text),
        Property::List(list) => Value::from(list),
    };
    properties.into_iter().map(|(name, property)| (name, value(property))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use zbus::object_server::SignalEmitter;
    use zbus::zvariant::OwnedValue;

    use super::*;

    /// systemd's side of the three calls, with the types of its interface description.
    #[derive(Clone, Default)]
    struct FakeManager {
        calls: Arc<Mutex<Vec<String>>>,
    }

    #[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
    impl FakeManager {
        fn subscribe(&self) {
            self.calls.lock().unwrap().push("Subscribe".to_owned());
        }

        async fn start_transient_unit(
            &self,
            #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
            name: String,
            mode: String,
            properties: Vec<(String, OwnedValue)>,
            aux: Vec<(String, Vec<(String, OwnedValue)>)>,
        ) -> zbus::fdo::Result<OwnedObjectPath> {
            let signatures: Vec<String> =
                properties.iter().map(|(name, value)| format!("{name}:{}", value.value_signature())).collect();
            self.calls.lock().unwrap().push(format!("{name} {mode} {} {}", signatures.join(","), aux.len()));
            let result = if name.starts_with("bad") { "failed" } else { "done" };
            // Another job first: only the own one counts.
            for (id, result) in [(6, "failed"), (7, result)] {
                let path = ObjectPath::try_from(format!("/job/{id}")).unwrap();
                Self::job_removed(&emitter, id, path, &name, result).await.unwrap();
            }
            Ok(ObjectPath::try_from("/job/7").unwrap().into())
        }

        fn set_unit_properties(&self, name: String, runtime: bool, properties: Vec<(String, OwnedValue)>) {
            self.calls.lock().unwrap().push(format!("{name} {runtime} {}", properties.len()));
        }

        #[zbus(signal)]
        async fn job_removed(
            emitter: &SignalEmitter<'_>,
            id: u32,
            job: ObjectPath<'_>,
            unit: &str,
            result: &str,
        ) -> zbus::Result<()>;
    }

    async fn connected() -> (Bus, FakeManager, Connection) {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let fake = FakeManager::default();
        let guid = zbus::Guid::generate();
        let server = connection::Builder::unix_stream(theirs).server(guid).unwrap().p2p();
        let server = server.serve_at(PATH, fake.clone()).unwrap();
        let client = connection::Builder::unix_stream(ours).p2p();
        let (server, client) = tokio::join!(server.build(), client.build());
        let bus = Bus { connection: tokio::sync::Mutex::new(Some(client.unwrap())) };
        (bus, fake, server.unwrap())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_slice_is_started_and_its_job_awaited() {
        let (bus, fake, _server) = connected().await;
        let properties = vec![
            ("Description", Property::Text("d".to_owned())),
            ("CPUAccounting", Property::Flag(true)),
            ("CPUShares", Property::Number(2)),
            ("Wants", Property::List(vec!["kubepods.slice".to_owned()])),
        ];
        bus.call("kubepods-podx.slice", Call::Start(properties)).await.unwrap();
        bus.call("kubepods-podx.slice", Call::Set(vec![("CPUShares", Property::Number(4))])).await.unwrap();
        assert_eq!(
            *fake.calls.lock().unwrap(),
            [
                "kubepods-podx.slice replace Description:s,CPUAccounting:b,CPUShares:t,Wants:as 0",
                "kubepods-podx.slice true 1"
            ]
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_failed_job_is_an_error_and_the_next_call_connects_again() {
        let (bus, _fake, _server) = connected().await;
        let error = bus.call("bad.slice", Call::Start(Vec::new())).await.unwrap_err();
        assert!(error.contains("failed"), "{error}");
        assert!(bus.connection.lock().await.is_none());
    }
}
