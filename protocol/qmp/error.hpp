// SPDX-License-Identifier: Apache-2.0
//
// QmpError: what an error reply says. The class is for programs, the text for people (qmp.md 3: clients may test
// the class, never the text; libvirt tests CommandNotFound and DeviceNotFound).
//
// Thread: values.
#pragma once

#include "base/result.hpp"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <iosfwd>
#include <string>
#include <utility>

namespace migrationd::qmp {

using Json = nlohmann::json;                 // what was received
using OrderedJson = nlohmann::ordered_json;  // what is sent: members in the order they were put in

enum class ErrorClass : std::uint8_t {
  generic,
  command_not_found,
  device_not_active,
  device_not_found,
  kvm_missing_cap
};

class QmpError {
 public:
  QmpError() = default;  // needed by Boost 1.81's result::error()
  explicit QmpError(std::string text, ErrorClass error_class = ErrorClass::generic)
      : class_(error_class), text_(std::move(text)) {}
  // An error of the rest of the program becomes a GenericError with its whole line of context.
  QmpError(const Error& error) : text_(error.text()) {}  // NOLINT: the conversion is the point

  ErrorClass error_class() const noexcept { return class_; }
  const std::string& text() const noexcept { return text_; }

 private:
  ErrorClass class_ = ErrorClass::generic;
  std::string text_;
};

template <class T = void>
using QmpResult = boost::system::result<T, QmpError>;

std::ostream& operator<<(std::ostream& out, const QmpError& error);
[[noreturn]] void throw_exception_from_error(const QmpError& error, const boost::source_location& where);

}  // namespace migrationd::qmp
