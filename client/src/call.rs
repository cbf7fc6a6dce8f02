//! Calls with optional parameters: builders that are sent by `.await`.

use std::pin::Pin;

use crate::Error;

/// A call under way.
pub type Call<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// Makes a builder with a method `run` awaitable.
macro_rules! awaitable {
    ($builder:ty => $answer:ty) => {
        impl IntoFuture for $builder {
            type Output = Result<$answer, $crate::Error>;
            type IntoFuture = $crate::call::Call<$answer>;

            fn into_future(self) -> Self::IntoFuture {
                Box::pin(self.run())
            }
        }
    };
}

pub(crate) use awaitable;
