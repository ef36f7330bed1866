#pragma once
// TransportID: how persistent reservations name an initiator port to the initiators (SPC-5 7.6.4).
//
// virtio-scsi has no format of its own, so guests are shown in the iSCSI form (protocol 5h, format 00b): a name. The
// naming authority is a domain that by RFC 2606 belongs to nobody.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace pollux::scsi {

std::vector<std::uint8_t> encode_transport_id(const std::string& initiator);
// The initiator that encode_transport_id() was given; nothing for any other TransportID.
std::optional<std::string> decode_transport_id(std::span<const std::uint8_t> bytes);

}  // namespace pollux::scsi
