// SPDX-License-Identifier: Apache-2.0
//
// Result<T> and Error: how everything in migrationd fails.
//
// A function that can fail returns Result<T>. An Error is made once, where the cause is known, and gains one
// line of context per phase on its way up, so that its text reads from the outside in:
//
//     load section 'ram' (id 2): block 'pc.ram': offset 0x5000 is past the end (used 0x4000)
//
// Exceptions are for allocation failure and programming errors only; both end the process.
//
// Thread: values, no shared state. Text that a peer chose must pass through printable() before it enters an
// Error, so that no terminal or log is driven by it.
#pragma once

#include <boost/system/result.hpp>

#include <cerrno>
#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>
#include <utility>

namespace migrationd {

// Where an error belongs. It decides how the error is shown (QMP class, log level), never what the text says.
enum class ErrorKind : std::uint8_t {
  io,         // the operating system said no; errno is kept
  wire,       // the peer's bytes are wrong (stream, file or return path)
  plan,       // the request contradicts the settings, or itself
  machine,    // the machine cannot do it (state, devices, memory)
  peer,       // the peer reported a failure, or its answer is missing
  cancelled,  // somebody asked for the end; never shown as a failure
  limit,      // a named bound of base/limits.hpp was exceeded
};

// A class with constructors, not an aggregate: GCC 12.2 destroys aggregate temporaries twice when they share
// a full expression with co_await (docs/architecture.md, "Toolchain rules").
class Error {
 public:
  // Boost 1.81's result::error() needs it for the case that there is none; nothing else makes an empty Error.
  Error() = default;
  Error(ErrorKind kind, std::string text) : kind_(kind), text_(std::move(text)) {}
  // An operating-system failure: `what` is the sentence before the colon, strerror(err) follows it.
  static Error from_errno(std::string what, int err = errno);

  ErrorKind kind() const noexcept { return kind_; }
  // errno of the failed call; 0 when no system call was the cause.
  int sys_errno() const noexcept { return errno_; }
  // Context and cause in one line: "phase: section: cause".
  const std::string& text() const noexcept { return text_; }
  bool is_cancelled() const noexcept { return kind_ == ErrorKind::cancelled; }

  // Puts `context` in front: Error("x").with("load") reads "load: x".
  Error with(std::string_view context) &&;

 private:
  ErrorKind kind_ = ErrorKind::machine;
  int errno_ = 0;
  std::string text_;
};

template <class T = void>
using Result = boost::system::result<T, Error>;

// For test output; boost's result prints its error with it.
std::ostream& operator<<(std::ostream& out, const Error& error);

// Boost asks for this when value() is called on an error: a programming error, so the process ends.
[[noreturn]] void throw_exception_from_error(const Error& error, const boost::source_location& where);

inline Error wire_error(std::string text) { return Error(ErrorKind::wire, std::move(text)); }
inline Error plan_error(std::string text) { return Error(ErrorKind::plan, std::move(text)); }
inline Error machine_error(std::string text) { return Error(ErrorKind::machine, std::move(text)); }
inline Error cancelled_error() { return Error(ErrorKind::cancelled, "cancelled"); }

// `text` made safe to print: bytes outside 0x20..0x7e as \xNN, at most `max` bytes of input, "..." if cut.
std::string printable(std::string_view text, std::size_t max = 64);
// `max` for a path or address in an error text: the client's own word, so long ones stay readable.
inline constexpr std::size_t printable_address_bytes = 4096;

// "0x1234": offsets and sizes in error texts.
std::string hex(std::uint64_t value);

}  // namespace migrationd

// Leaves the enclosing function with the error of a Result<void>-like expression.
#define MD_CHECK(expression)                                                               \
  do {                                                                                     \
    if (auto md_result_ = (expression); !md_result_) return std::move(md_result_).error(); \
  } while (false)

// MD_TRY(auto x, f());  declares x from the value, or leaves the function with the error.
#define MD_TRY(declaration, expression) MD_TRY_(declaration, expression, __COUNTER__)
#define MD_TRY_(declaration, expression, unique) MD_TRY__(declaration, expression, unique)
#define MD_TRY__(declaration, expression, unique)                  \
  auto md_try_##unique = (expression);                             \
  if (!md_try_##unique) return std::move(md_try_##unique).error(); \
  declaration = std::move(*md_try_##unique)
